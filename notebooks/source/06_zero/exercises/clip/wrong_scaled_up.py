# caught by: small
# Scales small gradients up


def clip_shards(shards, max_norm):
    total = torch.stack([shard.grad.square().sum() for shard in shards]).sum()
    dist.all_reduce(total)
    norm = total.sqrt()
    for shard in shards:
        shard.grad *= max_norm / norm
    return norm
