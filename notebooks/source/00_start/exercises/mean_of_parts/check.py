"""The mean of values that lie in unequal numbers in the ranks."""

from dlcourse.course.exercises import as_number, expect, expect_close, expect_sent, measured

NAMES = ("mean_of_parts",)
CASES = ("mean", "equal", "empty", "small", "bytes")


def check(mean_of_parts, rank, world_size):
    import torch

    parts = [torch.arange(2.0 + 3 * r) + 10 * r for r in range(world_size)]
    with measured() as seen:
        got = mean_of_parts(parts[rank].clone())
    want = torch.cat(parts).mean().item()
    plain = sum(part.mean().item() for part in parts) / world_size
    value = as_number(got)
    trap = value is not None and abs(value - plain) < 1e-3
    ones = mean_of_parts(torch.full((5,), 3.0))
    parts[1] = torch.empty(0)
    empty = mean_of_parts(parts[rank].clone())
    first = (
        expect("mean", False, "mean_of_means", got=round(value, 4), want=round(want, 4))
        if trap
        else expect_close("mean", got, want, atol=1e-3)
    )
    return [
        first,
        expect_close("equal", ones, 3.0, atol=1e-4),
        expect_close("empty", empty, torch.cat(parts).mean().item(), atol=1e-3),
        expect("small", seen.calls() <= 1, "many", got=seen.calls()),
        expect_sent("bytes", seen, minimum=2 * (world_size - 1) / world_size * 16),
    ]
