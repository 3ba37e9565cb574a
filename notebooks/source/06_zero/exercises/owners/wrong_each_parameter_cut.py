# caught by: even, across, padding, tiny
# Each parameter is cut into as many parts as there are ranks, as tensor parallelism does


def owners(sizes, ranks):
    pieces = [[] for _ in range(ranks)]
    for parameter, size in enumerate(sizes):
        n = -(-size // ranks)
        for rank in range(ranks):
            start, stop = min(rank * n, size), min((rank + 1) * n, size)
            if start < stop:
                pieces[rank].append((parameter, start, stop))
    return pieces
