# caught by: tensor, pipeline, data
# What all tensor ranks have is added up as often as there are ranks


def grad_norm(cut, whole, mesh):
    square = sum((grad**2).sum() for grad in cut + whole)
    dist.all_reduce(square, group=mesh.get_group("tensor"))
    dist.all_reduce(square, group=mesh.get_group("pipeline"))
    return square.sqrt().item()
