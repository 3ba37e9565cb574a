import math


def gpus_for(active, total, tokens, days, mfu, peak, node):
    seconds = 6 * active * tokens / (mfu * peak)
    gpus = seconds / (days * 86400)
    return node * math.ceil(gpus / node)
