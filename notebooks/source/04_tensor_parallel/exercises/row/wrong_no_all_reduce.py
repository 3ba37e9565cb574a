# caught by: without_bias, with_bias, calls


def row_parallel(x, weight, bias):
    return F.linear(x, weight, bias)
