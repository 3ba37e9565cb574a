"""What lesson NN asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked


def sum_for_each_rank() -> float:
    """Every rank adds 1, so the sum is 1 for each rank."""
    return 1.0


PREDICTIONS = {"NN.sum": Asked(sum_for_each_rank, reason="reason.sum", unit="×")}
