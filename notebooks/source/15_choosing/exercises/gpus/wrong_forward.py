# caught by: dense, experts, whole, exact
# Counts the forward pass alone
import math


def gpus_for(active, total, tokens, days, mfu, peak, node):
    seconds = 2 * active * tokens / (mfu * peak)
    return node * math.ceil(seconds / (days * 86400) / node)
