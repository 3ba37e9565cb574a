"""Real ranks that are killed while they train, and go on from a checkpoint."""

from __future__ import annotations

from dlcourse import Ranks
from dlcourse.training.goodput import foreseen, moments_of_failure, train_with_failures


def test_ranks_that_die_come_to_the_same_model():
    """Equal to the last bit: the same numbers in the same order; a checkpoint rounds nothing."""
    with Ranks(2, device="cpu") as ranks:
        alone = train_with_failures(ranks, steps=12, interval=3, mtbf_steps=None)
        run = train_with_failures(ranks, steps=12, interval=3, mtbf_steps=6, seed=1)
    assert (alone.executed, alone.failures, alone.lost) == (12, 0, 0)
    executed, failures, _ = foreseen(moments_of_failure(6, seed=1), steps=12, interval=3)
    assert (run.executed, run.failures) == (executed, failures)
    assert run.failures >= 2 and run.lost >= 2  # or this seed shows nothing
    assert (run.loss, run.checksum) == (alone.loss, alone.checksum)
