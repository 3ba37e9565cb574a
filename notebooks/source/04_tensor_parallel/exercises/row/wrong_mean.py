# caught by: without_bias, with_bias


def row_parallel(x, weight, bias):
    y = x @ weight.T
    dist.all_reduce(y)
    return (y + bias) / world_size
