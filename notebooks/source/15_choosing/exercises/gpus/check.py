"""How many GPUs a training needs to be done in time, on the back of an envelope."""

import math

from dlcourse.course.exercises import as_number, expect, not_number

NAMES = ("gpus_for",)
CASES = ("dense", "experts", "whole", "exact")
NUM_RANKS = 1
WHERE = "kernel"

# active and total parameters, tokens, days, MFU, peak FLOP/s, GPUs of a node
_JOBS = {
    "dense": (70e9, 70e9, 1e12, 30, 0.4, 989e12, 8),
    "experts": (22e9, 235e9, 2e12, 21, 0.3, 989e12, 8),
    "whole": (8e9, 8e9, 2e11, 20, 0.35, 312e12, 4),
    # 6 N D is exactly the work of 16 GPUs, and floats hold all of these numbers exactly
    "exact": (2.0**30, 2.0**30, 16 * 86400 / 6 * 2.0**16, 1, 0.5, 2.0**47, 8),
}


def check(gpus_for, rank, world_size):
    return [_judge(case, gpus_for, *job) for case, job in _JOBS.items()]


def _needed(numbers, tokens, days, mfu, peak, node, flops=6):
    exact = flops * numbers * tokens / (days * 86400 * mfu * peak)
    return math.ceil(exact / node) * node


def _judge(case, gpus_for, active, total, *rest):
    tokens, days, mfu, peak, node = rest
    answer = gpus_for(active, total, tokens, days, mfu, peak, node)
    got = as_number(answer)
    if got is None:
        return not_number(case, answer)
    want = _needed(active, *rest)
    known = {
        "forward": _needed(active, *rest, flops=2),
        "recomputed": _needed(active, *rest, flops=8),
        "total": _needed(total, *rest),
        "without_mfu": _needed(active, tokens, days, 1, peak, node),
        "hours": _needed(active, tokens, days / 24, mfu, peak, node),
    }
    values = {"got": f"{got:,.10g}", "want": f"{want:,}", "node": str(node)}
    for key, number in known.items():
        if got == number != want:
            return expect(case, False, key, **values)
    return expect(case, got == want, "nodes" if got % node else "wrong", **values)
