"""What ZeRO costs, by formula: bytes of model states, and bytes sent in a step. Needs no torch.

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", SC 2020, sections 3.1, 5 and 7.
"""

from __future__ import annotations

STAGES = (0, 1, 2, 3)
# Bytes of a parameter, a gradient, and Adam's state for one parameter
MIXED = {"parameters": 2, "gradients": 2, "optimizer_state": 12}
FLOAT32 = {"parameters": 4, "gradients": 4, "optimizer_state": 8}
_DIVIDED_FROM = {"optimizer_state": 1, "gradients": 2, "parameters": 3}


def model_state_bytes(
    num_parameters: float, *, world_size: int, stage: int, mixed: bool = True
) -> dict[str, float]:
    """Bytes in each rank, by category; activations and buffers come on top.

    Args:
        num_parameters: trainable parameters of the whole model.
        stage: 0 is plain data parallelism.
        mixed: 16-bit parameters and gradients and 12 bytes of float32 state, as in the paper;
            else everything in float32.

    Raises:
        ValueError: no such stage, or fewer than one rank.
    """
    _check(world_size, stage)
    sizes = MIXED if mixed else FLOAT32
    return {
        name: num_parameters * size / (world_size if stage >= _DIVIDED_FROM[name] else 1)
        for name, size in sizes.items()
    }


def bytes_sent(parameter_bytes: float, *, world_size: int, stage: int) -> float:
    """Bytes that one rank sends in a step with one backward.

    Each of reduce-scatter and all-gather sends (N - 1) / N of the parameters. Stages 0 to 2 have
    one of each (that is what an all-reduce is); stage 3 gathers twice.

    Args:
        parameter_bytes: of the whole model, in the type that is sent.
    """
    _check(world_size, stage)
    return (3 if stage == 3 else 2) * (world_size - 1) / world_size * parameter_bytes


def _check(world_size: int, stage: int) -> None:
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r} is not one of {STAGES}: 0 is plain data parallelism")
    if world_size < 1:
        raise ValueError(f"world_size={world_size} is not allowed: give 1 or more ranks")
