# caught by: bytes
# right, but sends twice as much as needed


def same_everywhere(x):
    low, high = x.clone(), x.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    return torch.equal(low, high)
