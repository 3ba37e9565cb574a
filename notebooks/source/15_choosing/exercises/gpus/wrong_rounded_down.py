# caught by: dense, experts, whole
# A node too few: late
def gpus_for(active, total, tokens, days, mfu, peak, node):
    seconds = 6 * active * tokens / (mfu * peak)
    return node * int(seconds / (days * 86400) // node)
