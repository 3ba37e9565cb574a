"""What lesson 02 asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked


def sum_of_the_column() -> float:
    """Each rank holds 1 / ranks in every element, so each sum is 1."""
    return 1.0


def bytes_through_the_network() -> int:
    """Loads and stores to memory that all ranks share use no network."""
    return 0


PREDICTIONS = {
    "02.column": Asked(sum_of_the_column, reason="reason.column"),
    "02.wire": Asked(bytes_through_the_network, reason="reason.wire", unit="bytes"),
}
