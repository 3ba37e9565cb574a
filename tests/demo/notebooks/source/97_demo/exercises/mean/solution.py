def mean(x):
    dist.all_reduce(x)
    return x / world_size
