# caught by: one
# only the sums are compared: a small difference is lost in rounding


def same_everywhere(x):
    low = x.sum()
    high = low.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    return bool(low == high)
