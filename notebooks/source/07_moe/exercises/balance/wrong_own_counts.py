# caught by: same
# Each rank by its own tokens


def update_bias(bias_E, counts_E):
    bias_E += 0.03 * (1 - counts_E / counts_E.float().mean())
