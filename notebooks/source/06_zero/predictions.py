"""What lesson 06 asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.figures.zero import RANKS, peak_by_formula, states_of
from dlcourse.formulas.traffic import zero_bytes


def whole_states() -> float:
    """2 + 2 + 12 bytes for each parameter."""
    return sum(states_of(0).values())


def stage_1_states() -> float:
    """2 + 2 bytes for each parameter, and a fourth of 12."""
    return sum(states_of(1).values())


def sent_by_stage_1() -> float:
    """A reduce-scatter and an all-gather, in sizes of the model."""
    return zero_bytes(1, world_size=RANKS, stage=1)


def sent_by_stage_3() -> float:
    """One all-gather more."""
    return zero_bytes(1, world_size=RANKS, stage=3)


def less_at_the_peak() -> float:
    """Data parallelism over stage 3, activations and gathered blocks included."""
    return peak_by_formula(0) / peak_by_formula(3)


PREDICTIONS = {
    "06.whole": Asked(whole_states, reason="reason.whole", unit="bytes"),
    "06.stage1": Asked(stage_1_states, reason="reason.stage1", unit="bytes"),
    "06.sent1": Asked(sent_by_stage_1, reason="reason.sent1", unit="×"),
    "06.sent3": Asked(sent_by_stage_3, reason="reason.sent3", unit="×"),
    "06.peak": Asked(less_at_the_peak, reason="reason.peak", unit="×"),
}
