"""The mean of values of which the ranks have different numbers."""

from dlcourse.course.exercises import (
    as_number,
    expect,
    expect_calls,
    expect_sent,
    measured,
    not_number,
)

NAMES = ("mean_over_ranks",)
CASES = ("equal", "unequal", "empty", "calls", "bytes")
NUM_RANKS = 3


def check(mean_over_ranks, rank, world_size):
    import math

    import torch

    def values(counts):
        """Whole numbers, so that no order of adding them rounds."""
        whole = torch.arange(float(sum(counts))) ** 2
        return whole, whole.split(counts)

    findings = []
    for case, counts in (("equal", [4, 4, 4]), ("unequal", [1, 5, 9]), ("empty", [0, 7, 2])):
        whole, parts = values(counts)
        with measured() as seen:
            got = mean_over_ranks(parts[rank].clone())
        want = whole.mean().item()
        answer, got = got, as_number(got)
        if got is None:
            findings.append(not_number(case, answer))
            continue
        of_means = sum(p.mean().item() if len(p) else math.nan for p in parts) / world_size
        both_nan = math.isnan(got) and math.isnan(of_means)
        same = both_nan or math.isclose(got, of_means, rel_tol=1e-5)
        right = math.isclose(got, want, rel_tol=1e-5)
        key = "mean_of_means" if same and not right else "value"
        findings.append(expect(case, right, key, got=f"{got:.5g}", want=f"{want:.5g}"))
        if case == "unequal":
            findings.append(expect_calls("calls", seen, "all_reduce", 1))
            share = 2 * (world_size - 1) / world_size
            findings.append(expect_sent("bytes", seen, minimum=share * 8, at_most=2.0))
    return findings
