"""A ring of sends in which nobody waits for ever."""

from __future__ import annotations

from typing import Any

from dlcourse.course.exercises import Finding, expect, expect_sent, measured

from ..common import expect_values

NAMES = ("pass_right",)
CASES = ("values", "unchanged", "bytes")


def check(pass_right: Any, rank: int, world_size: int) -> list[Finding]:
    import torch

    x = torch.arange(1000.0) + 10 * rank
    with measured() as seen:
        got = pass_right(x)
    left, right = (torch.arange(1000.0) + 10 * ((rank + k) % world_size) for k in (-1, 1))
    return [
        expect_values("values", got, left, "backwards", right),
        expect("unchanged", torch.equal(x, torch.arange(1000.0) + 10 * rank), "changed"),
        expect_sent("bytes", seen, minimum=x.nbytes, at_least=0.95),
    ]
