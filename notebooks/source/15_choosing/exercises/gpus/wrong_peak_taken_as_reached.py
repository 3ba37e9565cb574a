# caught by: dense, experts, whole, exact
# As if every GPU reached its peak
import math


def gpus_for(active, total, tokens, days, mfu, peak, node):
    seconds = 6 * active * tokens / peak
    return node * math.ceil(seconds / (days * 86400) / node)
