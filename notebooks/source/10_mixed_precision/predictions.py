"""What lesson 10 asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.figures.mixed_precision import ACTIVATIONS, STATES


def backward_in_float32() -> float:
    """Percent: backward multiplies what forward has saved, in 16 bits."""
    return 0.0


def states_of_autocast() -> int:
    """Bytes: parameters, gradients and Adam's moments in float32, 16 a parameter."""
    return sum(STATES["autocast"].values())


def activations_of_autocast() -> int:
    """Bytes, operator by operator."""
    return ACTIVATIONS["autocast"]


def left_of_one() -> float:
    """1.0: every update is less than half of the gap to the next number below 1, 2**-8."""
    return 1.0


def bytes_of_a_message() -> float:
    """Bytes a parameter: the type of .grad."""
    return 4.0


PREDICTIONS = {
    "10.backward": Asked(backward_in_float32, reason="reason.backward", unit="%"),
    "10.states": Asked(states_of_autocast, reason="reason.states", unit="bytes"),
    "10.activations": Asked(activations_of_autocast, reason="reason.activations", unit="bytes"),
    "10.lost": Asked(left_of_one, reason="reason.lost"),
    "10.wire": Asked(bytes_of_a_message, reason="reason.wire"),
}
