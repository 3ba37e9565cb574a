"""What lesson 04 asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.figures.tensor_parallel import (
    all_reduces,
    backward_bytes,
    gathered_bytes,
    gathers_over_reduce,
    ring_bytes,
)


def as_many() -> int:
    """A reduce-scatter and an all-gather send what an all-reduce does."""
    return 1


PREDICTIONS = {
    "04.gather": Asked(gathered_bytes, reason="reason.gather", unit="bytes"),
    "04.ways": Asked(gathers_over_reduce, reason="reason.ways", unit="×"),
    "04.backward": Asked(backward_bytes, reason="reason.backward", unit="bytes"),
    "04.calls": Asked(all_reduces, reason="reason.calls"),
    "04.sequence": Asked(as_many, reason="reason.sequence", unit="×"),
    "04.ring": Asked(ring_bytes, reason="reason.ring", unit="bytes"),
}
