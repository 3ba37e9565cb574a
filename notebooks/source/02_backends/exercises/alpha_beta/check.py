"""Alpha and beta from times, with no size deciding alone."""

import random

from dlcourse.course.exercises import as_list, as_number, describe, expect

NAMES = ("alpha_beta",)
CASES = ("exact", "noise", "large", "small", "latency", "flat")
NUM_RANKS = 1
WHERE = "kernel"

_SIZES = (64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1 << 20, 4 << 20, 16 << 20)


def check(alpha_beta, rank, world_size):
    draw = random.Random(0)
    exact = _times(1e-4, 2e-10)
    noise = [(n, s * (1 + draw.uniform(-0.05, 0.05))) for n, s in _times(5e-5, 1e-9)]
    large = _times(1e-4, 2e-9)
    large[-1] = (large[-1][0], 1.1 * large[-1][1])
    small = _times(2e-4, 1e-9)
    small[0] = (small[0][0], 1.4 * small[0][1])
    latency = [(n, s) for n, s in _times(3e-3, 1e-10) if n <= 16_384] + [(16 << 20, 3e-3 + 1e-3)]
    cases = {
        "exact": (exact, 1e-4, 2e-10, 0.02),
        "noise": (noise, 5e-5, 1e-9, 0.05),
        "large": (large, 1e-4, 2e-9, 0.10),
        "small": (small, 2e-4, 1e-9, 0.15),
        "latency": (latency[::-1], 3e-3, 1e-3 / (16 << 20), 0.10),
    }
    found = [_judge(case, alpha_beta(list(p)), *want) for case, (p, *want) in cases.items()]
    return [*found, _judge_flat(alpha_beta([(1024, 5e-7), (1 << 20, 1e-3), (16 << 20, 20e-3)]))]


def _times(alpha, beta):
    return [(n, alpha + beta * n) for n in _SIZES]


def _two(got):
    pair = as_list(got)
    numbers = (
        [as_number(value) for value in pair] if pair is not None and len(pair) == 2 else [None]
    )
    return None if None in numbers else numbers


def _judge(case, got, alpha, beta, allowed):
    pair = _two(got)
    if pair is None:
        return expect(case, False, "pair", got=describe(got))
    mine, slope = pair
    values = {
        "alpha": f"{mine:.3g}",
        "beta": f"{slope:.3g}",
        "alpha_off": f"{mine / alpha - 1:+.0%}",
        "beta_off": f"{slope / beta - 1:+.0%}",
        "allowed": f"{allowed:.0%}",
    }
    if abs(slope * beta - 1) < 0.2 or slope > 1e3:
        return expect(case, False, "bandwidth", **values)
    right = abs(mine / alpha - 1) <= allowed and abs(slope / beta - 1) <= allowed
    key = "alpha" if abs(mine / alpha - 1) > allowed else "beta"
    return expect(case, right, key, **values)


def _judge_flat(got):
    pair = _two(got)
    if pair is None:
        return expect("flat", False, "pair", got=describe(got))
    return expect("flat", min(pair) >= 0, "negative", alpha=f"{pair[0]:.3g}")
