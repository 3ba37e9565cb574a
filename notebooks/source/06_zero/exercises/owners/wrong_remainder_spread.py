# caught by: padding
# No padding: the first ranks own one element more


def owners(sizes, ranks):
    total, edges = sum(sizes), [0]
    for rank in range(ranks):
        edges.append(edges[-1] + total // ranks + (rank < total % ranks))
    pieces, first = [[] for _ in range(ranks)], 0
    for parameter, size in enumerate(sizes):
        for rank in range(ranks):
            start, stop = max(edges[rank] - first, 0), min(edges[rank + 1] - first, size)
            if start < stop:
                pieces[rank].append((parameter, start, stop))
        first += size
    return pieces
