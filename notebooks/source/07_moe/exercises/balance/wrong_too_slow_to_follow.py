# caught by: moving
# Good at rest, late when favourites change


def update_bias(bias_E, counts_E):
    dist.all_reduce(counts_E)
    bias_E += 3e-3 * (counts_E.float().mean() - counts_E).sign()
