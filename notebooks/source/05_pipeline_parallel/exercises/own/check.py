"""A schedule of one's own, faster than 1F1B in the same memory."""

from dlcourse.course.exercises import entered, expect_own

from ..common import LIBRARIES, judge_schedule, run_schedule

NAMES = ("my_schedule",)
CASES = ("complete", "runs", "memory", "time", "same", "own")

LONGEST = 24 / (1 - 0.12)  # 8 micro-batches of 3 units are 88% of it


def check(my_schedule, rank, world_size):
    with entered(*LIBRARIES) as libraries:
        lines = my_schedule()
    findings, schedule = judge_schedule(
        lines, num_ranks=4, micro_batches=8, activations=[4] * 4, total=LONGEST
    )
    findings.append(expect_own("own", libraries))
    return findings + ([] if schedule is None else [run_schedule(schedule)])
