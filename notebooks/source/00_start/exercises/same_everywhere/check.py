"""Whether a tensor is the same in all ranks, answered alike by all of them."""

from dlcourse.course.exercises import (
    as_truth,
    describe,
    expect,
    expect_close,
    expect_sent,
    gathered,
    measured,
)

NAMES = ("same_everywhere",)
CASES = ("equal", "one", "balanced", "agree", "kept", "bytes")


def check(same_everywhere, rank, world_size):
    import torch

    base = torch.arange(10_000.0)
    x = base.clone()
    with measured() as seen:
        equal = same_everywhere(x)
    one_off = base + (rank == world_size - 1) * (base == 77) * 1e-3
    # The ranks' sum is world_size times the value of the ranks in the middle.
    balanced = base + (rank == 0) * 1.0 - (rank == world_size - 1) * 1.0
    before = balanced.clone()
    answers = {"one": same_everywhere(one_off), "balanced": same_everywhere(balanced)}
    said = {name: as_truth(got) for name, got in answers.items()}
    everyone = gathered(said)
    split = any(each != everyone[0] for each in everyone)
    missed = [
        expect(name, said[name] is False, "missed", got=describe(got))
        for name, got in answers.items()
    ]
    size = base.nbytes
    return [
        expect_close("equal", equal, True),
        *missed,
        expect("agree", not split, "split"),
        expect("kept", torch.equal(x, base) and torch.equal(balanced, before), "changed"),
        expect_sent("bytes", seen, minimum=2 * (world_size - 1) / world_size * size),
    ]
