# caught by: bytes
# Right, but every rank gets everything.


def pass_right(x):
    parts = [torch.empty_like(x) for _ in range(world_size)]
    dist.all_gather(parts, x)
    return parts[(rank - 1) % world_size]
