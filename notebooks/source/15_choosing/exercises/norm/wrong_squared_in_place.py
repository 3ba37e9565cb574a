# caught by: same
# The gradients are their own squares afterwards


def grad_norm(cut, whole, mesh):
    square = sum(grad.square_().sum() for grad in cut)
    dist.all_reduce(square, group=mesh.get_group("tensor"))
    square += sum(grad.square_().sum() for grad in whole)
    dist.all_reduce(square, group=mesh.get_group("pipeline"))
    return square.sqrt().item()
