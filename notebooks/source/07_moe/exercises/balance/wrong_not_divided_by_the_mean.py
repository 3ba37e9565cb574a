# caught by: balance, moving
# Moves by whole tokens


def new_bias(bias_E, counts_E):
    dist.all_reduce(counts_E)
    return bias_E + 0.03 * (counts_E.float().mean() - counts_E)
