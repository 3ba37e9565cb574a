# caught by: unchanged
# Adds into a part of x itself.


def reduce_scatter(x):
    parts = x.chunk(world_size)
    for k in range(1, world_size):
        source, target = (rank - k) % world_size, (rank + k) % world_size
        inbox = torch.empty_like(parts[rank])
        coming = dist.irecv(inbox, source)
        dist.send(parts[target], target)
        coming.wait()
        parts[rank].add_(inbox)
    return parts[rank]
