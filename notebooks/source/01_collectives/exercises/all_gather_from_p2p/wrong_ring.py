# caught by: rounds
# The ring: the least bytes, but p - 1 rounds.


def all_gather(part):
    parts = [torch.empty_like(part) for _ in range(world_size)]
    parts[rank] = part
    for step in range(world_size - 1):
        coming = dist.irecv(parts[rank - step - 1], (rank - 1) % world_size)
        dist.send(parts[rank - step], (rank + 1) % world_size)
        coming.wait()
    return torch.cat(parts)
