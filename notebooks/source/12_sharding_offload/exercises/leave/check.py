"""Gradients that leave during backward."""

from dlcourse.course.exercises import expect, measured

NAMES = ("leave",)
CASES = ("calls", "values", "none", "memory")
NUM_RANKS = 1
TIME_LIMIT = 30.0


def check(leave, rank, world_size):
    import gc

    import torch
    from torch import nn

    def build():
        torch.manual_seed(3)
        model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(12)))
        model.append(model[0])  # a layer that is used twice: its gradient is a sum
        return model

    plain, x = build(), torch.ones(4, 64)
    model, taken = build(), []
    sizes = {}

    def put(parameter, gradient):
        taken.append(id(parameter))
        sizes[id(parameter)] = None if gradient is None else gradient.double().sum().item()

    gc.collect()
    leave(model, put)
    counts, same = [], True
    with measured() as seen:
        for _ in range(2):
            taken.clear()
            model(x).square().mean().backward()
            counts.append(sorted(taken) == sorted(id(p) for p in model.parameters()))
    plain(x).square().mean().backward()
    for p, want in zip(model.parameters(), plain.parameters(), strict=True):
        got = sizes.get(id(p))
        same = same and got is not None and abs(got - want.grad.double().sum().item()) < 1e-4
    left = sum(p.grad is not None for p in model.parameters())
    one = 64 * 64 * 4
    peak = seen.record["memory"]["peaks"]["gradients"] / one
    calls = len(taken)
    return [
        expect("calls", all(counts), "calls_off", got=calls, want=12),
        expect("values", same, "differs"),
        expect("none", left == 0, "left", got=left),
        expect("memory", peak <= 2, "too_high", got=f"{peak:.0f}"),
    ]
