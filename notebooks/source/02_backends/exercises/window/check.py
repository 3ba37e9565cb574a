"""An all-gather out of nothing but put and barrier."""

import torch

from dlcourse.course.exercises import expect, expect_at_most, expect_equal, measured

from ..common import Window

NAMES = ("all_gather",)
CASES = ("order", "late_writer", "late_reader", "kept", "sizes", "puts", "barriers", "alone")
NUM_RANKS = 4
TIME_LIMIT = 40.0


def check(all_gather, rank, world_size):
    findings = []
    with Window(64) as window:
        with measured() as seen:
            found = all_gather(_part(rank, 3), window)
        found = found.clone() if isinstance(found, torch.Tensor) else found
    findings.append(expect_equal("order", found, _want(world_size, 3)))
    for case, slow in (("late_writer", {"writer": 2}), ("late_reader", {"reader": 1})):
        with Window(64, **slow) as window:
            first = all_gather(_part(rank, 5), window)
            early = first.clone() if isinstance(first, torch.Tensor) else first
            second = all_gather(_part(rank, 5) + 1000, window)
            window.leave()
        good = expect_equal(case, early, _want(world_size, 5))
        if good["ok"]:
            good = expect_equal(case, second, _want(world_size, 5) + 1000)
        findings.append(good)
        if case == "late_writer":
            findings.append(expect_equal("kept", first, _want(world_size, 5)))
    sizes = []
    with Window(64) as window:
        for n in (1, 16, 2):
            sizes.append(
                expect_equal("sizes", all_gather(_part(rank, n), window), _want(world_size, n))
            )
        wide, times = window.sent, window.barriers
    findings.append(next((f for f in sizes if not f["ok"]), sizes[-1]))
    least = 4 * (1 + 16 + 2) * (world_size - 1)
    findings.append(expect("puts", wide <= least, "puts", got=wide, least=least))
    findings.append(expect_at_most("barriers", "barriers", times / 3, 2))
    findings.append(expect("alone", seen.calls() == 0, "alone", calls=seen.calls()))
    return findings


def _part(rank, n):
    return torch.arange(float(n)) + 10 * rank


def _want(world_size, n):
    return torch.cat([_part(r, n) for r in range(world_size)])
