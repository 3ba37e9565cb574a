# caught by: balance, moving
# Prefers who is busy already


def update_bias(bias_E, counts_E):
    dist.all_reduce(counts_E)
    bias_E += 0.03 * (counts_E / counts_E.float().mean() - 1)
