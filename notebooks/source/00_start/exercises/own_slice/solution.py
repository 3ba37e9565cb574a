def own_slice(n):
    share, rest = divmod(n, world_size)
    start = rank * share + min(rank, rest)
    return start, start + share + (rank < rest)
