"""Four ranks run the same lines: what their variable is at the end, read and not run."""

from dlcourse.course.exercises import as_list, as_number, describe, expect

NAMES = ("x_in_ranks",)
CASES = ("four", "own", "changed")
NUM_RANKS = 1
WHERE = "kernel"

_START = [1.0, 2.0, 3.0, 4.0]  # x at first; the all-reduce makes its sum of it in every rank
_ADDED = 100.0  # by rank 2, to its own total


def check(x_in_ranks, rank, world_size):
    got = as_list(x_in_ranks())
    numbers = [as_number(value) for value in got] if got is not None else []
    usable = len(numbers) == 4 and None not in numbers
    if not usable:
        return [expect("four", False, "form", got=describe(got))]
    want = [sum(_START) - x + _ADDED * (rank == 2) for rank, x in enumerate(_START)]
    wrong = [str(rank) for rank in (0, 1, 3) if numbers[rank] != want[rank]]
    values = {"got": ", ".join(f"{n:g}" for n in numbers), "ranks": ", ".join(wrong)}
    return [
        expect("four", True),
        expect("own", not wrong, _looks_like(numbers, want), **values),
        expect("changed", numbers[2] == want[2], "rank_2", got=f"{numbers[2]:g}"),
    ]


def _looks_like(numbers, want):
    if numbers[0] == numbers[1] == numbers[3]:
        return "alike"
    if all(numbers[rank] == want[rank] + _ADDED for rank in (0, 1, 3)):
        return "spread"
    return "wrong"
