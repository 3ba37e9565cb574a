# caught by: exact
# One node more than needed, where the work divides
def gpus_for(active, total, tokens, days, mfu, peak, node):
    seconds = 6 * active * tokens / (mfu * peak)
    return node * (int(seconds / (days * 86400) // node) + 1)
