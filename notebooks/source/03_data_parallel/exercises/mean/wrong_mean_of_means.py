# caught by: unequal, empty


def mean_over_ranks(x):
    total = x.mean()
    dist.all_reduce(total)
    return total / world_size
