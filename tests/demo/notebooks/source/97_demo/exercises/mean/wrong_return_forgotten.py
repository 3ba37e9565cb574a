# caught by: values, own


def mean(x):
    dist.all_reduce(x)
    x / world_size
