"""Layers divided among devices so that the fullest holds least."""

from dlcourse.course.exercises import describe, expect

NAMES = ("balance",)
CASES = ("equal", "ends", "mixed", "tight")
NUM_RANKS = 1
TIME_LIMIT = 30.0
WHERE = "kernel"


def check(balance, rank, world_size):
    from itertools import accumulate, pairwise

    def fullest(costs, sizes):
        ends = list(accumulate(sizes, initial=0))
        return max(sum(costs[a:b]) for a, b in pairwise(ends))

    def shorten(costs):
        return str(costs) if len(costs) <= 12 else f"{str(costs[:12])[:-1]}, …]"

    def best(costs, devices):
        """The least limit, found by dynamic programming over cuts."""
        total = list(accumulate(costs, initial=0))
        row = total[1:]
        for k in range(1, devices):
            row = [
                min(max(row[j - 1], total[i + 1] - total[j]) for j in range(k, i + 1))
                if i >= k
                else total[-1]
                for i in range(len(costs))
            ]
        return row[-1]

    cases = {
        "equal": [([7] * 100, 3), ([5] * 12, 4)],
        "ends": [([90] + [10] * 20 + [160], 3), ([100, 1, 1, 1, 1, 1], 3)],
        "mixed": [([1, 2, 3, 4, 5, 6, 7, 8, 9], 3), ([4, 4, 4, 1, 9, 2, 2, 7, 3, 3, 8, 1], 4)],
        "tight": [([9, 9, 9], 3), ([50, 1, 1], 3)],
    }
    findings = []
    for case, jobs in cases.items():
        for costs, devices in jobs:
            sizes = balance(list(costs), devices)
            listed = isinstance(sizes, list | tuple) and all(type(k) is int for k in sizes)
            if not listed or len(sizes) != devices:
                findings.append(expect(case, False, "sizes", got=describe(sizes), devices=devices))
                break
            if sum(sizes) != len(costs) or min(sizes) < 1:
                findings.append(expect(case, False, "sum", got=str(list(sizes)), n=len(costs)))
                break
            got, want = fullest(costs, sizes), best(costs, devices)
            shown = {"got": got, "want": want, "sizes": str(list(sizes)), "costs": shorten(costs)}
            finding = expect(case, got <= want, "too_full", **shown)
            findings.append(finding)
            if not finding["ok"]:
                break
    return findings
