"""Bytes of model states: parameters, gradients and the optimizer's state, in one rank.

``state_bytes`` is what papers count, for any number of parameters. ``exact_state_bytes`` is what
our own implementation keeps of a GPT, to the byte: ZeRO pads each unit to a multiple of the ranks,
and torch's AdamW has a step counter for each tensor.

Sources: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
SC 2020, sections 3.1 and 5; Micikevicius et al., "Mixed Precision Training", ICLR 2018, for master
weights.
"""

from __future__ import annotations

from dlcourse.formulas.parameters import parameter_units
from dlcourse.formulas.recipe import PRECISIONS, STAGES, Recipe
from dlcourse.formulas.sizes import GPTConfig

CATEGORIES = ("parameters", "gradients", "optimizer_state")
# Bytes of a parameter, of its gradient, and of AdamW's state for it
BYTES_PER_PARAMETER = {
    "float32": (4, 4, 8),
    "autocast": (4, 4, 8),
    "master": (2, 2, 12),  # two moments and the master weight, in float32
    "bfloat16": (2, 2, 4),
}
_MOMENTS = {"adamw": 2, "momentum": 1, "sgd": 0}  # numbers of the optimizer for one parameter
_DIVIDED_FROM = {"optimizer_state": 1, "gradients": 2, "parameters": 3}  # which ZeRO stage on
STEP_COUNTER_BYTES = 4  # of each tensor in torch's AdamW


def check_precision_name(precision: str) -> None:
    """Refuse a precision that is none of ``PRECISIONS``."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown: give one of {', '.join(PRECISIONS)}")


def check_world_size(world_size: int) -> int:
    """The same number; a ValueError where there is no rank."""
    if world_size < 1:
        raise ValueError(f"world_size={world_size} is not allowed: give 1 or more ranks")
    return world_size


def check_stage(*, world_size: int, stage: int) -> None:
    """Refuse what is no stage of ZeRO, and fewer than one rank."""
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r} is not one of {STAGES}: 0 is plain data parallelism")
    check_world_size(world_size)


def value_bytes(precision: str) -> int:
    """Bytes of a parameter, and of a gradient."""
    check_precision_name(precision)
    return BYTES_PER_PARAMETER[precision][0]


def state_bytes(
    num_parameters: float, *, precision: str, world_size: int = 1, stage: int = 0
) -> dict[str, float]:
    """Bytes in each rank by category, with AdamW; activations and buffers come on top.

    Args:
        num_parameters: trainable parameters of the whole model.
        precision: one of ``PRECISIONS``. The ZeRO paper's 2 + 2 + 12 bytes are "master".

    Raises:
        ValueError: an unknown precision, no such stage, or fewer than one rank.
    """
    check_precision_name(precision)
    check_stage(world_size=world_size, stage=stage)
    whole = {
        name: size * num_parameters
        for name, size in zip(CATEGORIES, BYTES_PER_PARAMETER[precision], strict=True)
    }
    return {
        name: size / world_size if stage >= _DIVIDED_FROM[name] else size
        for name, size in whole.items()
    }


def exact_state_bytes(config: GPTConfig, recipe: Recipe, *, world_size: int = 1) -> dict[str, int]:
    """Bytes of parameters, gradients and optimizer state in a rank, when a step ends: exact."""
    units = parameter_units(config)
    whole = sum(numbers for numbers, _ in units)
    tensors = sum(count for _, count in units)
    if recipe.stage:
        part = sum(-(-numbers // world_size) for numbers, _ in units)
        whole, tensors = part * world_size, len(units)
    else:
        part = whole
    size = value_bytes(recipe.precision)
    if recipe.precision == "master":
        state = BYTES_PER_PARAMETER["master"][2] * part
    else:
        state = _MOMENTS[recipe.optimizer] * size * part
        state += STEP_COUNTER_BYTES * tensors * (recipe.optimizer == "adamw")
    # Stage 3 has one number for each unit, which stands for its parameters while they are away
    return {
        "parameters": size * (part + len(units) if recipe.stage == 3 else whole),
        "gradients": size * (part if recipe.stage >= 2 else whole),
        "optimizer_state": state,
    }


def offloaded_state_bytes(num_parameters: int, *, value_bytes: int = 4) -> int:
    """Bytes that the host takes where the optimizer's state is offloaded to it.

    The master copy and Adam's state of a parameter, of 4 bytes each or what ``value_bytes`` has
    more, and a buffer for what travels.

    Args:
        value_bytes: of a number that travels, a gradient or a parameter.

    Source: Ren et al., "ZeRO-Offload: Democratizing Billion-Scale Model Training", ATC 2021, 4.1.
    """
    return num_parameters * (3 * max(4, value_bytes) + value_bytes)
