# caught by: even
# rounded up, as torch.chunk does: 3, 3, 3, 1


def own_slice(n):
    k = -(-n // world_size)
    return min(rank * k, n), min((rank + 1) * k, n)
