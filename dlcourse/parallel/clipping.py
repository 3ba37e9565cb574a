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

from dlcourse.parallel.sendable import cut_parameters


@torch.no_grad()
def clip_grad_norm_(model: nn.Module, max_norm: float, norm_type: float = 2.0) -> Tensor:
    """As ``torch.nn.utils.clip_grad_norm_``, for a model and not for its parameters.

    Call it in all ranks, after ``sync_gradients()`` where the model has that. A model of which
    nothing is cut is torch's job, and gets torch's numbers.

    Returns:
        The norm before clipping: that of one process, the same in all ranks.

    Raises:
        ValueError: a pipeline or ZeRO, whose parts are not known here.
    """
    for layer in model.modules():
        if hasattr(layer, "shards") or hasattr(layer, "schedule"):
            raise ValueError(
                f"{type(layer).__name__} holds a part of the model's gradients: add up the squares "
                "over its ranks yourself, as exercise 06.clip does"
            )
    cut = cut_parameters(model)
    if not cut:
        return nn.utils.clip_grad_norm_(model.parameters(), max_norm, norm_type)
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    device = next(model.parameters()).device

    def power(gradients: list[Tensor]) -> Tensor:
        norm = nn.utils.get_total_norm(gradients, norm_type).to(device, torch.float64)
        return norm if norm_type == float("inf") else norm**norm_type

    join = torch.maximum if norm_type == float("inf") else torch.add
    op = dist.ReduceOp.MAX if norm_type == float("inf") else dist.ReduceOp.SUM
    total = power([p.grad for p in parameters if p not in cut])
    for group in dict.fromkeys(cut.values()):
        part = power([p.grad for p in parameters if p in cut and cut[p] is group])
        dist.all_reduce(part, op=op, group=group)
        total = join(total, part)
    norm = total if norm_type == float("inf") else total ** (1 / norm_type)
    if parameters:
        norm = norm.to(parameters[0].grad.dtype)
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
