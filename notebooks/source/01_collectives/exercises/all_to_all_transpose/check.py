"""The transpose of a matrix of which each rank has some rows."""

from __future__ import annotations

from typing import Any

from dlcourse.course.exercises import Finding, expect_equal, expect_sent, measured

from ..common import expect_values

NAMES = ("transpose",)
CASES = ("values", "small", "bytes")


def check(transpose: Any, rank: int, world_size: int) -> list[Finding]:
    import torch

    n, own = 32 * world_size, 32
    matrix = torch.arange(float(n * n)).view(n, n)
    rows = matrix[rank * own : (rank + 1) * own].clone()
    with measured() as seen:
        got = transpose(rows)
    small = torch.arange(world_size**2, dtype=torch.int64).view(world_size, world_size)
    got_small = transpose(small[rank : rank + 1].clone())
    want = matrix.T[rank * own : (rank + 1) * own].contiguous()
    inside_out = torch.cat([block.T for block in want.split(own, dim=1)], dim=1)
    least = (world_size - 1) / world_size * rows.nbytes
    return [
        expect_values("values", got, want, "blocks", inside_out),
        expect_equal("small", got_small, small.T[rank : rank + 1].contiguous()),
        expect_sent("bytes", seen, minimum=least, at_least=0.95),
    ]
