# caught by: hang


def mean(x):
    if rank:
        dist.all_reduce(x)
    return x / world_size
