# caught by: norm, large, calls
# What a habit writes: each rank clips by its own norm


def clip_shards(shards, max_norm):
    return nn.utils.clip_grad_norm_(shards, max_norm)
