"""What lesson 05 asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.figures.pipeline_parallel import MICRO_BATCHES, NUM_RANKS
from dlcourse.formulas.bubbles import idle_over_total


def bubble_of_gpipe() -> float:
    """Percent of the whole time: 3 of 8 + 3."""
    return 100 * idle_over_total(NUM_RANKS, MICRO_BATCHES)


def bubble_of_two_chunks() -> float:
    """Percent of the whole time: 3 of 2 * 8 + 3."""
    return 100 * idle_over_total(NUM_RANKS, MICRO_BATCHES, num_chunks=2)


def gpipe_over_1f1b() -> float:
    """Activations of rank 0: 8 micro-batches, or as many as there are ranks."""
    return MICRO_BATCHES / NUM_RANKS


PREDICTIONS = {
    "05.bubble": Asked(bubble_of_gpipe, reason="reason.bubble", unit="%"),
    "05.chunks": Asked(bubble_of_two_chunks, reason="reason.chunks", unit="%"),
    "05.memory": Asked(gpipe_over_1f1b, reason="reason.memory", unit="×"),
}
