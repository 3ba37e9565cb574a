# caught by: calls


def mean(x):
    parts = [torch.empty_like(x) for _ in range(world_size)]
    dist.all_gather(parts, x)
    return sum(parts) / world_size
