"""Checkpoints placed for the lowest peak."""

from dlcourse.course.exercises import describe, expect, measured

NAMES = ("place",)
CASES = ("square", "rest", "costly", "middle")
NUM_RANKS = 1
TIME_LIMIT = 60.0


def check(place, rank, world_size):
    import gc

    import torch
    from torch import nn

    from dlcourse.formulas.checkpoint_segments import every
    from dlcourse.training.checkpointing.segments import segmented

    def peak(n, cost, segments):
        def layer():
            return nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in costs))

        costs = range(cost)
        model = nn.Sequential(*segmented([layer() for _ in range(n)], segments))
        x = torch.ones(2048, 16, requires_grad=True)
        gc.collect()
        with measured() as seen:
            model(x).sum().backward()
        return seen.record["memory"]["peaks"]["activations"] / x.nbytes

    findings = []
    for case, n, cost in (
        ("square", 36, 1),
        ("rest", 30, 1),
        ("costly", 12, 12),
        ("middle", 32, 2),
    ):
        segments = place(n, cost)
        whole = isinstance(segments, list) and all(type(k) is int and k > 0 for k in segments)
        if not whole or sum(segments) > n:
            shown = describe(segments)
            findings.append(expect(case, False, "no_placement", got=shown, n=n))
            continue
        best = min(range(1, n + 1), key=lambda k: -(-n // k) + k * cost)
        target = 1.1 * peak(n, cost, every(n, best))
        got = peak(n, cost, segments)
        key = "sum" if sum(segments) < n - max(segments, default=0) else "too_high"
        values = {"got": f"{got:.1f}", "want": f"{target:.1f}", "longest": max(segments, default=0)}
        values |= {"count": len(segments)}
        missing = n - sum(segments)
        findings.append(expect(case, got <= target, key, **values, missing=missing, cost=cost))
    return findings
