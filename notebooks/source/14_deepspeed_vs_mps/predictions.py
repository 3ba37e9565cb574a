"""What lesson 14 asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked

BATCH, MICRO_BATCH, RANKS = 64, 16, 2
FIRST_SCALE = 2**16


def micro_batches_of_two_ranks() -> int:
    """The batch is divided by the micro-batch and by the ranks."""
    return BATCH // (MICRO_BATCH * RANKS)


def saved_by_the_block() -> int:
    """A configuration calls no function of the model: nothing is saved."""
    return 0


def halved_twice() -> float:
    """The rule of torch's scaler: each infinity halves."""
    return FIRST_SCALE / 2 / 2


PREDICTIONS = {
    "14.micro_batches": Asked(micro_batches_of_two_ranks, reason="reason.micro_batches"),
    "14.block": Asked(saved_by_the_block, reason="reason.block", unit="%"),
    "14.scale": Asked(halved_twice, reason="reason.scale"),
}
