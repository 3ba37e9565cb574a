"""Which items are a rank's own, where they cannot be divided evenly."""

from dlcourse.course.exercises import describe, expect, gathered, measured

NAMES = ("own_slice",)
CASES = ("pair", "all", "once", "range", "even", "silent")


def check(own_slice, rank, world_size):
    with measured() as seen:
        mine = {n: own_slice(n) for n in (8, 10, 2, 0)}
    findings = []
    for n, got in mine.items():
        pair = isinstance(got, tuple | list) and len(got) == 2
        pair = pair and all(isinstance(edge, int) for edge in got)
        pair = pair and all(edge.bit_length() < 64 for edge in got)
        everyone = gathered((pair, tuple(got) if pair else None))
        findings.append(expect("pair", pair, "no_pair", got=describe(got)))
        if not all(good for good, _ in everyone):
            continue
        owners = [0] * n
        for _, (start, stop) in everyone:
            for item in range(max(start, 0), min(stop, n)):
                owners[item] += 1
        outside = [edge for _, edges in everyone for edge in edges if not 0 <= edge <= n]
        lost = [item for item, count in enumerate(owners) if count == 0]
        twice = [item for item, count in enumerate(owners) if count > 1]
        sizes = [max(stop - start, 0) for _, (start, stop) in everyone]
        findings += [
            expect("all", not lost, "lost", n=n, items=lost),
            expect("once", not twice, "twice", n=n, items=twice),
            expect("range", not outside, "outside", n=n, edges=sorted(set(outside))),
            expect("even", max(sizes) - min(sizes) <= 1, "uneven", n=n, sizes=sizes),
        ]
    findings.append(expect("silent", not seen.calls(), "talks", calls=seen.calls()))
    return findings
