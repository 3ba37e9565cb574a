"""Where to put checkpoints: every layer, every k layers, sqrt(n), or operator by operator.

A placement is a list of numbers: how many layers each checkpointed segment has, from the first
layer on. Layers that are left over keep what they compute, as always. For a model of 8 layers:

    []             no checkpoint                    [1] * 8    each layer by itself
    [4, 4]         every 4 layers                   [1, 1, 1]  the first three layers only
    [3, 3]         segments of 3; the last two layers keep everything

More segments store more inputs between them; longer ones come alive one at a time, but whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from dlcourse.training.checkpoint import checkpoint

Checkpoint = Callable[..., Tensor]
early_stop: Checkpoint = partial(torch_checkpoint, use_reentrant=False)  # torch's newer one
reentrant: Checkpoint = partial(torch_checkpoint, use_reentrant=True)


class Segment(nn.Module):
    """Consecutive layers that are checkpointed as one. Parameter names begin with "layers."."""

    def __init__(self, layers: Iterable[nn.Module], how: Checkpoint = checkpoint) -> None:
        super().__init__()
        self.layers, self.how = nn.Sequential(*layers), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.layers, x)


def every(n_layer: int, k: int) -> list[int]:
    """Segments of ``k`` layers; the last one may be shorter.

    Raises:
        ValueError: ``k`` is not between 1 and ``n_layer``.
    """
    if not 1 <= k <= n_layer:
        raise ValueError(f"k={k} layers in a segment: give 1 to {n_layer}, the number of layers")
    return [min(k, n_layer - start) for start in range(0, n_layer, k)]


def best_length(n_layer: int, *, layer: float, boundary: float) -> int:
    """The length of segments that needs least: n/k boundaries are stored, k layers come alive.

    n/k * boundary + k * layer is smallest at k = sqrt(n * boundary / layer): sqrt(n) layers, if a
    layer stores no more than its input.

    Args:
        layer: bytes that one layer stores for backward.
        boundary: bytes of its input.
    """
    return min(n_layer, max(1, round(math.sqrt(n_layer * boundary / layer))))


def segmented(
    layers: Sequence[nn.Module], segments: Sequence[int], how: Checkpoint = checkpoint
) -> nn.ModuleList:
    """The layers with checkpoints as ``segments`` says; the same parameters in the same order.

    Args:
        how: ours, or one of torch's: ``early_stop``, ``reentrant``, ``selective(...)``.

    Raises:
        ValueError: a segment without a layer, or more layers in segments than there are.
    """
    check_segments(segments, len(layers))
    rest, pieces = list(layers), []
    for size in segments:
        pieces.append(Segment(rest[:size], how))
        rest = rest[size:]
    return nn.ModuleList([*pieces, *rest])


def checkpoint_blocks(
    gpt: nn.Module, segments: Sequence[int], how: Checkpoint = checkpoint
) -> nn.Module:
    """Put checkpoints into a GPT, in place, and return it. See ``segmented``."""
    gpt.blocks = segmented(gpt.blocks, segments, how)
    return gpt


def selective(*operators: Any) -> Checkpoint:
    """Torch's checkpoint that keeps the results of some operators and computes the rest again.

    Args:
        operators: such as ``torch.ops.aten.mm.default``; they run once only.
    """
    contexts = partial(create_selective_checkpoint_contexts, list(operators))
    return partial(torch_checkpoint, use_reentrant=False, context_fn=contexts)


def check_segments(segments: Sequence[int], n_layer: int) -> None:
    """Refuse a placement that does not fit, before anything is built or computed."""
    for size in segments:
        if type(size) is not int or size < 1:
            raise ValueError(
                f"segments={list(segments)} has a segment of {size!r} layers: give whole numbers "
                "of 1 or more"
            )
    if sum(segments) > n_layer:
        raise ValueError(
            f"segments={list(segments)} adds up to {sum(segments)} layers of a model with "
            f"{n_layer}: give {n_layer} or fewer"
        )
