"""Reduce-scatter from point-to-point messages, in the fewest bytes."""

from __future__ import annotations

from typing import Any

from dlcourse.course.exercises import Finding, expect, expect_close, gathered, measured
from dlcourse.words.units import human_bytes

NAMES = ("reduce_scatter",)
CASES = ("values", "unchanged", "bytes")


def check(reduce_scatter: Any, rank: int, world_size: int) -> list[Finding]:
    import torch

    from dlcourse.collectives.tcp_counters import wire_counters

    part = 65_536
    x = torch.arange(float(part * world_size)) % 1000 + rank
    given = x.clone()
    gathered(None)  # nothing is on its way any more
    before = wire_counters()
    with measured() as seen:
        got = reduce_scatter(x)
    after = wire_counters()
    whole = world_size * (torch.arange(float(part * world_size)) % 1000)
    want = (whole + world_size * (world_size - 1) / 2)[rank * part : (rank + 1) * part]
    minimum = (world_size - 1) / world_size * x.nbytes
    # The counters see what a library does inside; where there are none, count the calls.
    sent = after[0] - before[0] if before and after else seen.sent()
    sizes = {"got": human_bytes(sent), "minimum": human_bytes(minimum), "ratio": sent / minimum}
    return [
        expect_close("values", got, want, atol=1e-3),
        expect("unchanged", torch.equal(x, given), "changed"),
        expect("bytes", sent <= 1.05 * minimum, "wire", **sizes),
    ]
