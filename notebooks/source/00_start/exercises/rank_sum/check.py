"""A sum over the ranks, in one all-reduce."""

from dlcourse.course.exercises import expect_calls, expect_close, measured

NAMES = ("rank_sum",)
CASES = ("sum", "other", "calls")


def check(rank_sum, rank, world_size):
    with measured() as seen:
        got = rank_sum(float(rank))
    other = rank_sum(2.5 * rank + 1)
    want = world_size * (world_size - 1) / 2
    return [
        expect_close("sum", got, want, atol=1e-4),
        expect_close("other", other, 2.5 * want + world_size, atol=1e-4),
        expect_calls("calls", seen, "all_reduce", 1),
    ]
