"""What lesson 09 asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.figures.accumulation import BATCH, BLOCK, peak_of_one_process

BATCH_BYTES = BATCH * BLOCK * 2 * 8  # tokens and targets, 64-bit integers


def promised_peak() -> float:
    """The promise at its word: all that is there with one batch of 64, but 1/4 of its activations.

    Bytes. The states by size of the model, the activations term by term (`dlcourse.formulas`),
    and the batch itself, which is there as a whole from the start.
    """
    at_peak = peak_of_one_process(accumulate=1)
    return sum(at_peak.values()) - at_peak["activations"] * 3 / 4 + BATCH_BYTES


def mean_of_means() -> float:
    """Mean loss 4 over one target, mean loss 2 over three: divided by the 2 micro-batches."""
    return (4 + 2) / 2


def times_sent() -> int:
    """Every one of the 4 backwards fills all buckets, and DDP sends each."""
    return 4


PREDICTIONS = {
    "09.peak": Asked(promised_peak, reason="reason.peak", unit="bytes"),
    "09.means": Asked(mean_of_means, reason="reason.means"),
    "09.no_sync": Asked(times_sent, reason="reason.no_sync", unit="×"),
}
