"""Which elements of which parameter each rank owns, where a row is cut into equal shards."""

from dlcourse.course.exercises import as_list, as_number, describe, expect

NAMES = ("owners",)
CASES = ("even", "across", "padding", "tiny")
NUM_RANKS = 1
WHERE = "kernel"

ROWS = {
    "even": [([8, 8], 2), ([8, 8], 4), ([16], 4)],
    "across": [([15, 4, 5], 3), ([3, 3, 3, 3], 2), ([1, 30, 1], 4)],
    "padding": [([15, 4, 4], 3), ([64, 16, 33], 7)],
    "tiny": [([2], 3), ([1, 1, 1], 5)],
}


def check(owners, rank, world_size):
    return [
        next((f for f in found if not f["ok"]), found[-1])
        for found in ([one(case, owners, *row) for row in ROWS[case]] for case in CASES)
    ]


def one(case, owners, sizes, ranks):
    """The finding for one row."""
    answer = owners(list(sizes), ranks)
    got = as_pieces(answer, ranks)
    words = {"sizes": str(sizes), "ranks": ranks}
    if got is None:
        return expect(case, False, "form", got=describe(answer), **words)
    n = -(-sum(sizes) // ranks)
    want = cut(sizes, n, ranks)
    if got == want:
        return expect(case, True)
    held = [sum(stop - start for _, start, stop in pieces) for pieces in got]
    if got == [
        [(i, min(r * k, s), min(r * k + k, s)) for i, s, k in each(sizes, ranks) if r * k < s]
        for r in range(ranks)
    ]:
        return expect(case, False, "each", **words)
    if sum(held) < sum(sizes):
        return expect(case, False, "lost", got=sum(held), want=sum(sizes), **words)
    if max(held) > n:
        return expect(case, False, "uneven", got=str(held), n=n, **words)
    at = next(r for r in range(ranks) if got[r] != want[r])
    return expect(case, False, "off", rank=at, got=str(got[at]), want=str(want[at]), n=n, **words)


def each(sizes, ranks):
    """Of each parameter: its number, its size, and its part in each rank if it were cut alone."""
    return [(i, s, -(-s // ranks)) for i, s in enumerate(sizes)]


def cut(sizes, n, ranks):
    """The pieces of each rank: the row is cut after every n elements."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        [
            (i, max(r * n - first, 0), min(r * n + n - first, size))
            for i, (first, size) in enumerate(zip(starts, sizes, strict=True))
            if max(r * n, first) < min(r * n + n, first + size)
        ]
        for r in range(ranks)
    ]


def as_pieces(answer, ranks):
    """The answer as lists of three whole numbers; None where it is not of that form."""
    rows = as_list(answer)
    if rows is None or len(rows) != ranks:
        return None
    found = []
    for row in map(as_list, rows):
        pieces = [as_list(piece) for piece in row or []]
        if row is None or any(piece is None or len(piece) != 3 for piece in pieces):
            return None
        numbers = [tuple(map(as_number, piece)) for piece in pieces]
        if not all(v is not None and v.is_integer() for piece in numbers for v in piece):
            return None
        found.append([tuple(map(int, piece)) for piece in numbers])
    return found
