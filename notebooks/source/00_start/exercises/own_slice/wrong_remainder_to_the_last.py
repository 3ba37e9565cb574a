# caught by: even
# the last rank takes all of the remainder


def own_slice(n):
    k = n // world_size
    return rank * k, n if rank == world_size - 1 else (rank + 1) * k
