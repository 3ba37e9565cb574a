"""Exercises: a stub to fill in, a check in fresh ranks, hints and a solution.

``check("03.mean")`` takes what the learner defined from the ranks (rank 0's copy), sends it by
value to a fresh pool, and runs the exercise's checker there with a time limit. So a check depends
on nothing that earlier cells left in the ranks but what the learner's code itself refers to.

The exercises themselves are in the lessons' rooms, ``notebooks/source/NN_name/exercises/``; how
such a folder is made up is in `room`.
"""

from __future__ import annotations

from dlcourse.course.exercises.checking import CheckResult, check, hint, solution
from dlcourse.course.exercises.exercise import Exercise, WrongAnswer
from dlcourse.course.exercises.expectations import (
    Finding,
    Measured,
    as_list,
    as_number,
    as_truth,
    describe,
    entered,
    expect,
    expect_at_least,
    expect_at_most,
    expect_calls,
    expect_close,
    expect_equal,
    expect_own,
    expect_sent,
    gathered,
    largest,
    measured,
    not_number,
    not_truth,
)
from dlcourse.course.exercises.registry import (
    all_exercises,
    common_module,
    find_exercise,
    lesson_exercises,
)

__all__ = [
    "CheckResult",
    "Exercise",
    "Finding",
    "Measured",
    "WrongAnswer",
    "all_exercises",
    "as_list",
    "as_number",
    "as_truth",
    "check",
    "common_module",
    "describe",
    "entered",
    "expect",
    "expect_at_least",
    "expect_at_most",
    "expect_calls",
    "expect_close",
    "expect_equal",
    "expect_own",
    "expect_sent",
    "find_exercise",
    "gathered",
    "hint",
    "largest",
    "lesson_exercises",
    "measured",
    "not_number",
    "not_truth",
    "solution",
]
