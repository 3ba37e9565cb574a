# caught by: whole
# Rents half a node
import math


def gpus_for(active, total, tokens, days, mfu, peak, node):
    seconds = 6 * active * tokens / (mfu * peak)
    return math.ceil(seconds / (days * 86400))
