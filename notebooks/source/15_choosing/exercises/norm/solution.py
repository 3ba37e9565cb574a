def grad_norm(cut, whole, mesh):
    square = sum((grad**2).sum() for grad in cut)
    dist.all_reduce(square, group=mesh.get_group("tensor"))
    square += sum((grad**2).sum() for grad in whole)
    dist.all_reduce(square, group=mesh.get_group("pipeline"))
    return square.sqrt().item()
