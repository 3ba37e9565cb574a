# caught by: calls


def mean_over_ranks(x):
    total, count = x.sum(), torch.tensor(len(x))
    dist.all_reduce(total)
    dist.all_reduce(count)
    return total / count
