"""A schedule that stands still, repaired."""

from ..common import judge_schedule, run_schedule

NAMES = ("repaired",)
CASES = ("complete", "runs", "memory", "time", "same")
NUM_RANKS = 3


def check(repaired, rank, world_size):
    findings, schedule = judge_schedule(
        repaired(), num_ranks=3, micro_batches=4, activations=[3, 2, 1], total=18
    )
    return findings + ([] if schedule is None else [run_schedule(schedule)])
