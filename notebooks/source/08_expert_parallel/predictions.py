"""What lesson 08 asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.figures.expert_parallel import LARGE_EXPERTS, trip_bytes
from dlcourse.formulas.traffic import distinct_ranks


def all_to_alls() -> int:
    """There and back in forward; backward sends the gradients of both the other way round."""
    return 4


def ranks_visited() -> float:
    """8 of 256 experts, 32 on each of 8 ranks: a rank is missed if all 8 are among other 224."""
    return distinct_ranks(LARGE_EXPERTS, 8, 8)


PREDICTIONS = {
    "08.bytes": Asked(trip_bytes, reason="reason.bytes", unit="bytes"),
    "08.calls": Asked(all_to_alls, reason="reason.calls"),
    "08.ranks": Asked(ranks_visited, reason="reason.ranks"),
}
