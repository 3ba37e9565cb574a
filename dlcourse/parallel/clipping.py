"""Clip gradients by the norm of the whole model, where ranks hold parts of it.

torch's ``clip_grad_norm_`` knows this rank's gradients only. With tensor parallelism each rank
would find another norm and scale its LayerNorms by another number, which then are no longer the
same in all ranks. Nothing would fail. So the squares of what is cut are added over the ranks; what
all ranks hold whole counts once.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.parallel.pipeline_stages import SomeLayers
from dlcourse.parallel.sendable import cut_parameters


@torch.no_grad()
def clip_grad_norm_(model: nn.Module, max_norm: float) -> Tensor:
    """As ``torch.nn.utils.clip_grad_norm_``, for a model and not for its parameters.

    Call it in all ranks, after ``sync_gradients()`` where the model has that. A model of which
    nothing is cut is torch's job, and gets torch's numbers. Sends one number for each group
    of ranks over which matrices are cut, and one over the stages of a pipeline.

    Returns:
        The norm before clipping: that of one process, the same in all ranks.

    Raises:
        ValueError: ZeRO, whose gradients are in shards.
    """
    for layer in model.modules():
        if hasattr(layer, "shards"):
            raise ValueError(
                f"{type(layer).__name__} keeps the gradients in shards: call its own "
                "clip_grad_norm_(max_norm)"
            )
    cut = cut_parameters(model)
    pipelines = [layer for layer in model.modules() if isinstance(layer, SomeLayers)]
    if not cut and not pipelines:
        return nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    gradients = {p: p.grad for p in model.parameters() if p.grad is not None}
    device = next(model.parameters()).device

    def square(gradients: list[Tensor]) -> Tensor:
        return nn.utils.get_total_norm(gradients).to(device, torch.float64) ** 2

    tied = {p for pipeline in pipelines for p in pipeline.counted_elsewhere()}
    total = square([g for p, g in gradients.items() if p not in cut and p not in tied])
    for group in dict.fromkeys(cut.values()):
        part = square([g for p, g in gradients.items() if p in cut and cut[p] is group])
        dist.all_reduce(part, group=group)
        total += part
    for pipeline in pipelines:  # each rank has other layers
        dist.all_reduce(total, group=pipeline.stage_group)
    norm = total.sqrt()
    if gradients:
        norm = norm.to(next(iter(gradients.values())).dtype.to_real())
        nn.utils.clip_grads_with_norm_([*gradients], max_norm, norm)
    return norm
