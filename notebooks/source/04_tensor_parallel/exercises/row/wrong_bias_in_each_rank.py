# caught by: with_bias


def row_parallel(x, weight, bias):
    y = F.linear(x, weight, bias)
    dist.all_reduce(y)
    return y
