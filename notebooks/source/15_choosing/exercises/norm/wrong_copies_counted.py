# caught by: data
# Over all ranks, copies along data too


def grad_norm(cut, whole, mesh):
    square = sum((grad**2).sum() for grad in cut)
    square += sum((grad**2).sum() for grad in whole) / mesh["tensor"].size()
    dist.all_reduce(square)
    return square.sqrt().item()
