# caught by: balance, moving
# Returns a new bias, and leaves the old one


def update_bias(bias_E, counts_E):
    dist.all_reduce(counts_E)
    return bias_E + 0.03 * (1 - counts_E / counts_E.float().mean())
