"""What lesson 07 asks before it measures: the formula of each answer."""

from __future__ import annotations

from math import pi, sqrt

from dlcourse.course.predictions import Asked
from dlcourse.figures.moe import EVEN, MOE, state_ratio

COPIES = 3 * 8 * 64 * MOE.top_k  # of tokens in a look: 3 kinds, 8 sequences of 64


def even_share() -> float:
    """Every expert is used alike: 2 of 8."""
    return EVEN


def dropped_by_chance() -> float:
    """Even on average, but each copy goes where chance sends it, and an expert takes its share.

    An expert gets a binomial number, about normal: half of them are above the mean, and the mean
    excess over all is the standard deviation divided by sqrt(2 pi).
    """
    even = 1 / MOE.num_experts
    excess = sqrt(COPIES * even * (1 - even)) / sqrt(2 * pi)
    return 100 * excess / (COPIES * even)


PREDICTIONS = {
    "07.states": Asked(state_ratio, reason="reason.states", unit="×"),
    "07.busiest": Asked(even_share, reason="reason.busiest", unit="%"),
    "07.dropped": Asked(dropped_by_chance, reason="reason.dropped", unit="%"),
}
