# caught by: one, balanced, agree
# each rank answers for itself: rank 0 always says True


def same_everywhere(x):
    first = x.clone()
    dist.broadcast(first, src=0)
    return torch.equal(x, first)
