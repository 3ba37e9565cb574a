# caught by: all, once
# the right sizes in the wrong places


def own_slice(n):
    share, rest = divmod(n, world_size)
    start = rank * share
    return start, start + share + (rank < rest)
