# caught by: bytes
# Sends the gradients themselves


def grad_norm(cut, whole, mesh):
    flat = torch.cat([grad.flatten() for grad in cut])
    parts = [torch.empty_like(flat) for _ in range(mesh["tensor"].size())]
    dist.all_gather(parts, flat, group=mesh.get_group("tensor"))
    square = sum((part**2).sum() for part in parts) + sum((grad**2).sum() for grad in whole)
    dist.all_reduce(square, group=mesh.get_group("pipeline"))
    return square.sqrt().item()
