"""All-gather by recursive doubling: log2(p) rounds and the fewest bytes."""

from __future__ import annotations

from typing import Any

from dlcourse.course.exercises import Finding, expect, expect_equal, expect_sent, measured

from ..common import expect_only_messages, expect_rounds, log2

NAMES = ("all_gather",)
CASES = ("values", "integers", "only", "bytes", "rounds")


def check(all_gather: Any, rank: int, world_size: int) -> list[Finding]:
    import torch

    part = torch.arange(1000.0) + 10_000 * rank
    with measured() as seen:
        got = all_gather(part.clone())
    want = torch.cat([torch.arange(1000.0) + 10_000 * k for k in range(world_size)])
    integers = all_gather(torch.full((3,), rank, dtype=torch.int64))
    values = expect_equal("values", got, want)
    if values["key"] == "far" and torch.equal(got.sort().values, want):
        values = expect("values", False, "order")
    return [
        values,
        expect_equal("integers", integers, torch.arange(world_size).repeat_interleave(3)),
        expect_only_messages("only", seen),
        expect_sent("bytes", seen, minimum=(world_size - 1) * part.nbytes, at_least=0.95),
        expect_rounds("rounds", seen, log2(world_size)),
    ]
