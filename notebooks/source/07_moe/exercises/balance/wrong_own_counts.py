# caught by: same
# Each rank by its own tokens


def new_bias(bias_E, counts_E):
    return bias_E + 0.03 * (1 - counts_E / counts_E.float().mean())
