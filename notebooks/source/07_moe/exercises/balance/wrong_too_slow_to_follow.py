# caught by: moving
# Good at rest, late when favourites change


def new_bias(bias_E, counts_E):
    dist.all_reduce(counts_E)
    return bias_E + 5e-3 * (counts_E.float().mean() - counts_E).sign()
