# caught by: norm, large
# Norms added


def clip_shards(shards, max_norm):
    norm = torch.stack([s.grad.norm() for s in shards]).norm()
    dist.all_reduce(norm)
    for s in shards:
        s.grad *= (max_norm / norm).clamp(max=1.0)
    return norm
