# caught by: balance, moving
# Swings from one expert to the next


def update_bias(bias_E, counts_E):
    dist.all_reduce(counts_E)
    bias_E += 0.05 * (counts_E.float().mean() - counts_E).sign()
