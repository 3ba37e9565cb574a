# caught by: all
# drops the remainder


def own_slice(n):
    k = n // world_size
    return rank * k, (rank + 1) * k
