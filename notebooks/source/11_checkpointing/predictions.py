"""What lesson 11 asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.figures.checkpointing import BATCH, CONFIG, EACH, more_flops
from dlcourse.formulas.activations import activation_peak, layer_bytes, stream_bytes
from dlcourse.formulas.checkpoint_segments import best_length


def bytes_of_a_layer() -> int:
    """16 values for each token and channel and 8 for each token, 4 bytes each."""
    return layer_bytes(CONFIG, **BATCH)


def peak_layer_by_layer() -> int:
    """12 inputs, one layer alive, and what its backward holds."""
    return activation_peak(CONFIG, **BATCH, segments=EACH)


def flops_layer_by_layer() -> float:
    """Percent: each layer's forward once more."""
    return more_flops(EACH)


def best_of_a_chain() -> int:
    """36 / k inputs are stored, k layers come alive."""
    return best_length(36, layer=1, boundary=1)


def best_of_the_gpt() -> int:
    """12 / k inputs are stored, k layers of 16 inputs each come alive."""
    layer, boundary = layer_bytes(CONFIG, **BATCH), stream_bytes(CONFIG, **BATCH)
    return best_length(CONFIG.n_layer, layer=layer, boundary=boundary)


PREDICTIONS = {
    "11.layer": Asked(bytes_of_a_layer, reason="reason.layer", unit="bytes"),
    "11.peak": Asked(peak_layer_by_layer, reason="reason.peak", unit="bytes"),
    "11.flops": Asked(flops_layer_by_layer, reason="reason.flops", unit="%"),
    "11.k": Asked(best_of_a_chain, reason="reason.k"),
    "11.gpt": Asked(best_of_the_gpt, reason="reason.gpt"),
}
