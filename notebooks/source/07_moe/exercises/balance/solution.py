def update_bias(bias_E, counts_E):
    dist.all_reduce(counts_E)
    share_E = counts_E / counts_E.float().mean()
    bias_E += 0.03 * (1 - share_E)
