# caught by: padding, tiny
# The row's last elements belong to nobody


def owners(sizes, ranks):
    n = sum(sizes) // ranks
    pieces, first = [[] for _ in range(ranks)], 0
    for parameter, size in enumerate(sizes):
        for rank in range(ranks):
            start, stop = max(rank * n - first, 0), min((rank + 1) * n - first, size)
            if start < stop:
                pieces[rank].append((parameter, start, stop))
        first += size
    return pieces
