# caught by: calls
# One all-reduce a shard


def clip_shards(shards, max_norm):
    total = torch.zeros(())
    for s in shards:
        part = s.grad.square().sum()
        dist.all_reduce(part)
        total += part
    norm = total.sqrt()
    for s in shards:
        s.grad *= (max_norm / norm).clamp(max=1.0)
    return norm
