"""What lesson 12 asks before it measures: the formula of each answer, for three devices."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.figures.sharding_offload import BATCH, CONFIG, SMALL, STATES, divided
from dlcourse.formulas.bubbles import idle_over_total
from dlcourse.formulas.devices import device_needs
from dlcourse.formulas.offload import OffloadJob, offloaded_step
from dlcourse.formulas.parameters import num_parameters


def states_of_the_middle() -> float:
    """33 layers: 16 bytes a parameter, and 4 for each tensor."""
    middle = device_needs(CONFIG, divided(CONFIG.n_layer, 3), **BATCH)[1]
    return sum(middle[name] for name in STATES)


def percent_idle() -> float:
    """(p - 1) / (m + p - 1) for p = 3 and m = 1."""
    return 100 * idle_over_total(3, 1)


def bytes_out() -> int:
    """One gradient for each parameter, 4 bytes each."""
    return 4 * num_parameters(SMALL)


def times_as_fast() -> float:
    """All moves after backward, over all moves behind it."""
    late, soon = (offloaded_step(OffloadJob(), "optimizer", overlap=o) for o in (False, True))
    return late.seconds / soon.seconds


def times_the_memory() -> int:
    """The model and a copy of it, over a third of the model."""
    return 2 * 3


PREDICTIONS = {
    "12.states": Asked(states_of_the_middle, reason="reason.states", unit="bytes"),
    "12.idle": Asked(percent_idle, reason="reason.idle", unit="%"),
    "12.moved": Asked(bytes_out, reason="reason.moved", unit="bytes"),
    "12.overlap": Asked(times_as_fast, reason="reason.overlap", unit="×"),
    "12.load": Asked(times_the_memory, reason="reason.load", unit="×"),
}
