# caught by: experts
# All experts, although a token uses few of them
import math


def gpus_for(active, total, tokens, days, mfu, peak, node):
    seconds = 6 * total * tokens / (mfu * peak)
    return node * math.ceil(seconds / (days * 86400) / node)
