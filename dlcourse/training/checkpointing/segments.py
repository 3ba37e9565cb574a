"""Checkpoints put into a model as a placement says, with our checkpoint or with torch's.

checkpoint_blocks(gpt, [4, 4])               # two segments of four layers
checkpoint_blocks(gpt, [1] * 8, early_stop)  # each layer, by torch
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from dlcourse.formulas.checkpoint_segments import check_segments
from dlcourse.models.gpt import GPT
from dlcourse.parallel.tensor import TensorParallelGPT
from dlcourse.training.checkpointing.checkpoint import checkpoint

Checkpoint = Callable[..., Tensor]
AnyGPT = TypeVar("AnyGPT", bound=GPT | TensorParallelGPT)
early_stop: Checkpoint = partial(torch_checkpoint, use_reentrant=False)  # torch's newer one
reentrant: Checkpoint = partial(torch_checkpoint, use_reentrant=True)

_ATTENTION = (
    "flash_attention_for_cpu",
    "flash_attention",
    "efficient_attention",
    "cudnn_attention",
)
# Matrix products and fused attention: nearly all of a model's FLOPs
PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    *(getattr(torch.ops.aten, f"_scaled_dot_product_{name}").default for name in _ATTENTION),
]


class Segment(nn.Module):
    """Consecutive layers that are checkpointed as one. Parameter names begin with "layers."."""

    def __init__(self, layers: Iterable[nn.Module], how: Checkpoint = checkpoint) -> None:
        super().__init__()
        self.layers, self.how = nn.Sequential(*layers), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.layers, x)


def segmented(
    layers: Iterable[nn.Module], segments: Sequence[int], how: Checkpoint = checkpoint
) -> nn.ModuleList:
    """The layers with checkpoints as ``segments`` says; the same parameters in the same order.

    Args:
        how: ours, or one of torch's: ``early_stop``, ``reentrant``, ``selective(...)``.

    Raises:
        ValueError: a segment without a layer, or more layers in segments than there are.
    """
    rest = list(layers)
    check_segments(segments, len(rest))
    checkpointed = []
    for size in segments:
        checkpointed.append(Segment(rest[:size], how))
        rest = rest[size:]
    return nn.ModuleList([*checkpointed, *rest])


def checkpoint_blocks(gpt: AnyGPT, segments: Sequence[int], how: Checkpoint = checkpoint) -> AnyGPT:
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
