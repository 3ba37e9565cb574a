# caught by: pipeline, same
# Each stage clips by a norm of its own


def grad_norm(cut, whole, mesh):
    square = sum((grad**2).sum() for grad in cut)
    dist.all_reduce(square, group=mesh.get_group("tensor"))
    square += sum((grad**2).sum() for grad in whole)
    return square.sqrt().item()
