# caught by: bytes
# Everybody gets the whole matrix.


def transpose(rows):
    parts = [torch.empty_like(rows) for _ in range(world_size)]
    dist.all_gather(parts, rows)
    own = len(rows)
    return torch.cat(parts).T[rank * own : (rank + 1) * own].contiguous()
