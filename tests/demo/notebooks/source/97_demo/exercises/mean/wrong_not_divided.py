# caught by: values


def mean(x):
    dist.all_reduce(x)
    return x
