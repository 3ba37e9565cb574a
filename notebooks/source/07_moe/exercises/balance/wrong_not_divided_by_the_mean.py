# caught by: balance, moving
# Moves by whole tokens


def update_bias(bias_E, counts_E):
    dist.all_reduce(counts_E)
    bias_E += 0.03 * (counts_E.float().mean() - counts_E)
