"""What lesson 00 asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.figures.one_model import GRADIENT
from dlcourse.formulas.traffic import wire_bytes

RANKS = 4  # as many as the questions name


def common_slope() -> float:
    """The points of all ranks lie alike, so the best common line has the mean of the slopes."""
    return sum(2 * rank + 1 for rank in range(RANKS)) / RANKS


def bytes_of_an_all_reduce() -> float:
    """What each of four ranks sends."""
    return wire_bytes("all_reduce", GRADIENT, RANKS)


def times_one_process() -> int:
    """As if the processes had nothing in common."""
    return RANKS


PREDICTIONS = {
    "00.slope": Asked(common_slope, reason="reason.slope"),
    "00.bytes": Asked(bytes_of_an_all_reduce, reason="reason.bytes", unit="bytes"),
    "00.memory": Asked(times_one_process, reason="reason.memory", unit="×"),
}
