# caught by: only


def all_gather(part):
    parts = [torch.empty_like(part) for _ in range(world_size)]
    dist.all_gather(parts, part)
    return torch.cat(parts)
