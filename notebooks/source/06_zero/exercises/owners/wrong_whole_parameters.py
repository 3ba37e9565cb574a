# caught by: across, padding
# Nobody's parameter is cut: each goes to the rank that has least so far


def owners(sizes, ranks):
    pieces, load = [[] for _ in range(ranks)], [0] * ranks
    for parameter, size in enumerate(sizes):
        rank = load.index(min(load))
        pieces[rank].append((parameter, 0, size))
        load[rank] += size
    return pieces
