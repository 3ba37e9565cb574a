"""A loss scaler on which all ranks agree."""

import math
from contextlib import nullcontext

from dlcourse.course.exercises import (
    as_truth,
    expect,
    expect_calls,
    expect_sent,
    measured,
    not_truth,
)

from ..common import first_failures

NAMES = ("Scaler",)
CASES = ("together", "divided", "scale", "range", "calls")
NUM_RANKS = 3
TIME_LIMIT = 30.0


def _storm():
    """(bad rank or None, value) for each step: quiet stretches, bursts, a storm, a long calm."""
    inf, nan = float("inf"), float("nan")
    quiet = [(None, 0.0)]
    steps = quiet * 7 + [(1, inf)] + quiet * 2 + [(0, nan)] + quiet * 4 + [(2, -inf), (1, nan)] * 3
    steps += quiet * 3 + [(0, inf)] + (quiet * 2 + [(2, nan)]) * 5
    return steps + [(0, inf)] * 30 + quiet * 90 + [(1, inf)] + quiet * 3


def _power(scale):
    exponent = math.log2(scale) if 0 < scale < math.inf else 0.5
    return f"2^{exponent:.0f}" if exponent.is_integer() else f"{scale:g}"


def check(Scaler, rank, world_size):
    import torch

    interval, low, high = 3, 1.0, 2.0**24
    scaler = Scaler(2.0**16, interval)
    want, calm = 2.0**16, 0
    findings = []
    for number, (bad_rank, value) in enumerate(_storm()):
        before = float(scaler.scale)
        true = torch.tensor([0.5, -(rank + 1.0)])
        grads = [true * want, torch.zeros(3)]
        if bad_rank == rank:
            grads[number % 2][1] = value
        with measured() if number == 0 else nullcontext() as seen:
            good = scaler.unscale(grads)
        if number == 0:
            findings.append(expect_calls("calls", seen, "all_reduce", 1))
            share = 2 * (world_size - 1) / world_size
            findings.append(expect_sent("calls", seen, minimum=share * 4, at_most=2.0))
        answer, good = good, as_truth(good)
        if good is None:
            return first_failures([*findings, not_truth("together", answer)])
        ok = bad_rank is None
        kind = "seen" if bad_rank == rank else "other"
        findings.append(expect("together", good == ok, "good" if ok else kind, step=number))
        if bad_rank is None:
            right = torch.allclose(grads[0], true, rtol=1e-4)
            findings.append(expect("divided", right, "not_divided", step=number))
        if ok:
            calm += 1
            if calm == interval:
                want, calm = min(want * 2, high), 0
        else:
            want, calm = max(want / 2, low), 0
        got = float(scaler.scale)
        case = "range" if got < low or got > high or want in (low, high) else "scale"
        findings.append(
            expect(
                case,
                got == want,
                "after_good" if ok else "after_bad",
                step=number,
                got=_power(got),
                want=_power(want),
                before=_power(before),
            )
        )
        if got != want or good != ok:
            break
    return first_failures(findings)
