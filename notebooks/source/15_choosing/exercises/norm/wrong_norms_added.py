# caught by: tensor, pipeline, data
# Adds norms instead of their squares


def grad_norm(cut, whole, mesh):
    norm = sum((grad**2).sum() for grad in cut + whole).sqrt()
    for side in ("tensor", "pipeline"):
        dist.all_reduce(norm, group=mesh.get_group(side))
    return norm.item()
