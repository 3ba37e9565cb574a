# caught by: balance, moving
# The published rate, in a run of 60 steps


def new_bias(bias_E, counts_E):
    dist.all_reduce(counts_E)
    return bias_E + 1e-3 * (counts_E.float().mean() - counts_E).sign()
