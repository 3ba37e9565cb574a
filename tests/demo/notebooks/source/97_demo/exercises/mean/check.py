"""The mean over the ranks."""

from dlcourse.course.exercises import expect, expect_calls, expect_close, expect_sent, measured

NAMES = ("mean",)
CASES = ("values", "bytes", "calls", "own")
NUM_RANKS = 2
TIME_LIMIT = 8.0


def check(mean, rank, world_size):
    import torch

    x = torch.arange(1000.0) + rank
    with measured() as seen:
        got = mean(x.clone())
    want = torch.arange(1000.0) + (world_size - 1) / 2
    constant = mean(torch.full((3,), float(rank)))
    return [
        expect_close("values", got, want, atol=1e-4),
        expect_sent("bytes", seen, minimum=2 * (world_size - 1) / world_size * 4000),
        expect_calls("calls", seen, "all_reduce", 1),
        expect("own", getattr(constant, "shape", None) == (3,), "shape_lost"),
    ]
