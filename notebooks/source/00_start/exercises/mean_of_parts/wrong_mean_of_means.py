# caught by: mean, empty
# the mean of the means


def mean_of_parts(values):
    x = values.mean()
    dist.all_reduce(x)
    return (x / world_size).item()
