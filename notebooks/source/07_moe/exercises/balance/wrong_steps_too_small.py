# caught by: balance, moving
# The published rate, in a run of 120 steps


def update_bias(bias_E, counts_E):
    dist.all_reduce(counts_E)
    bias_E += 1e-3 * (counts_E.float().mean() - counts_E).sign()
