# caught by: answer
# Changes what it was given and returns nothing


def new_bias(bias_E, counts_E):
    dist.all_reduce(counts_E)
    bias_E += 0.03 * (1 - counts_E / counts_E.float().mean())
