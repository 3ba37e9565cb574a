"""What lesson 13 asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.figures.memory_anatomy import BATCH, CONFIG, share_tokens, state_sizes
from dlcourse.formulas.activations import activation_peak
from dlcourse.formulas.memory import predict_peak
from dlcourse.formulas.parameters import num_parameters
from dlcourse.formulas.recipe import Recipe
from dlcourse.formulas.sizes import GPT2_LARGE
from dlcourse.formulas.states import exact_state_bytes


def bytes_a_parameter() -> float:
    """4 + 4 + 8, and a step counter for each tensor."""
    return sum(state_sizes().values()) / num_parameters(CONFIG)


def activations() -> int:
    """At the loss, of 8 sequences of 64 tokens."""
    return activation_peak(CONFIG, **BATCH)


def tokens() -> int:
    """At which activations are 15% of all."""
    return share_tokens(CONFIG)


def state_with_masters() -> float:
    """Optimizer state with master weights, times that without."""
    sizes = [exact_state_bytes(CONFIG, Recipe(precision=p)) for p in ("master", "float32")]
    return round(sizes[0]["optimizer_state"] / sizes[1]["optimizer_state"], 2)


def gpt2_large() -> float:
    """GB of two sequences of 1,024 tokens, AdamW, float32."""
    return round(sum(predict_peak(GPT2_LARGE, Recipe(), sequences=2, block=1024).values()) / 1e9, 1)


PREDICTIONS = {
    "13.states": Asked(bytes_a_parameter, reason="reason.states", unit="bytes"),
    "13.activations": Asked(activations, reason="reason.activations", unit="bytes"),
    "13.tokens": Asked(tokens, reason="reason.tokens"),
    "13.masters": Asked(state_with_masters, reason="reason.masters", unit="×"),
    "13.gpt2": Asked(gpt2_large, reason="reason.gpt2", unit="GB"),
}
