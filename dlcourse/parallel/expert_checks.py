"""What expert parallelism refuses, in all ranks at once: one that stops alone hangs the others."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parallel import DistributedDataParallel

from dlcourse.collectives.compat import all_gather_single
from dlcourse.collectives.p2p import Group
from dlcourse.models.moe import MoE, Routing
from dlcourse.parallel.divisibility import check_expert_parallel
from dlcourse.parallel.known_code import check_known
from dlcourse.parallel.sendable import check_same_everywhere


def check_model(model: nn.Module, process_group: Group, batch_group: Group) -> None:
    """Raise a ``ValueError`` in every rank where one of them cannot divide its experts."""
    for name, layer in model.named_modules():
        if isinstance(layer, MoE):
            check_known(layer, MoE, name, "expert_parallel builds it anew")
    if any(isinstance(parameter, FakeTensor) for parameter in model.parameters()):
        why = why_not_divided(model, process_group, batch_group)
        if why:
            raise ValueError(why)
        return
    why = why_not_divided(model, process_group, batch_group)
    check_same_everywhere(model, batch_group, refusal=why)
    settings = [
        (name, layer.num_experts, layer.top_k, layer.capacity_factor, layer.shared is None)
        for name, layer in model.named_modules()
        if isinstance(layer, MoE)
    ]
    device = next(model.parameters()).device
    mine = torch.tensor([zlib.crc32(repr(settings).encode())], device=device)
    everyone = mine.new_empty(dist.get_world_size(batch_group))
    all_gather_single(everyone, mine, group=batch_group)
    different = [rank for rank, theirs in enumerate(everyone.tolist()) if theirs != everyone[0]]
    if different:
        raise ValueError(
            f"MoE layers have another top_k or capacity_factor in ranks {different} than in rank "
            "0: build the model from the same configuration in all"
        )


def why_not_divided(model: nn.Module, process_group: Group, batch_group: Group) -> str:
    """Why the experts of a model cannot be divided over these ranks; empty where they can."""
    if any(hasattr(layer, "batch_group") for layer in model.modules()):
        return "model's experts have been divided before: make a new model and divide that"
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, MoE)}
    if not layers:
        return f"{type(model).__name__} has no MoE in it: give a model with MoE layers"
    batch_ranks = dist.get_process_group_ranks(batch_group or dist.group.WORLD)
    ranks = dist.get_process_group_ranks(process_group or dist.group.WORLD)
    if not {*ranks} <= {*batch_ranks}:
        return (
            f"batch_group has the ranks {batch_ranks}, and process_group {ranks}: ranks that share "
            "experts share the batch too, so give a batch_group that holds them all"
        )
    for name, layer in layers.items():
        try:
            check_expert_parallel(num_experts=layer.num_experts, size=len(ranks))
        except ValueError as error:
            return f"{name or type(layer).__name__}: {error}"
    return ""


def gather_counts(
    counts_E: Tensor,
    routing: Routing,
    dtype: torch.dtype,
    group: Group,
    layer: str,
    gather: Callable[..., Any] = all_gather_single,
) -> Tensor:
    """How many copies each rank has for each expert. Shape: (E,) in each rank to (R, E) in all.

    One all-gather of E + 3 numbers a rank. With the counts goes what would make the others wait for
    rows that never come, or read them as another type: all ranks stop here, before rows are sent.

    Args:
        dtype: of the rows that will be sent.
        gather: what carries the numbers, with the arguments of ``all_gather_single``.

    Raises:
        FloatingPointError: in every rank: the router of one gave NaN or an infinity.
        ValueError: in every rank: another dtype, or no gradients, in some of them.
    """
    N = len(routing.logits_NE)
    lost = N - routing.logits_NE.isfinite().all(1).sum()
    form = f"rows of {dtype}, {'with' if torch.is_grad_enabled() else 'without'} gradients"
    about = [lost, lost.new_tensor(N), lost.new_tensor(zlib.crc32(form.encode()))]
    mine = torch.cat([counts_E, torch.stack(about)])
    gathered = mine.new_empty(dist.get_world_size(group) * len(mine))
    gather(gathered, mine, group=group)
    counts_RE, about_R3 = gathered.view(-1, len(mine)).tensor_split([-3], dim=1)
    layer = layer or "this layer"
    ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
    if about_R3[:, 0].any():
        shares = [
            f"rank {rank}: {lost} of {N} tokens ({lost / N:.0%})"
            for rank, (lost, N, _) in zip(ranks, about_R3.tolist(), strict=True)
            if lost
        ]
        raise FloatingPointError(
            f"the router of {layer} gives logits that are NaN or infinite in {'; '.join(shares)}. "
            "No token was sent. Look at that rank's input, and at the learning rate"
        )
    codes = about_R3[:, 2].tolist()
    if len({*codes}) > 1:
        others = [rank for rank, code in zip(ranks, codes, strict=True) if code != about[2]]
        raise ValueError(
            f"this rank would send {layer}'s experts {form}, and ranks {others} would not: use "
            "the same autocast and the same no_grad in all ranks"
        )
    return counts_RE


def refuse_wrappers(experts: nn.Module, layer: str) -> None:
    """Raise a ``ValueError`` in the forward pass of torch's DDP, or of experts that FSDP holds."""
    if DistributedDataParallel._get_active_ddp_module() is not None:
        wrapper = "a DistributedDataParallel, which averages each rank's experts as if they were "
        wrapper += "the same, and has made them rank 0's"
    elif getattr(experts, "_is_fsdp_managed_module", False):  # set by fully_shard and by FSDP
        wrapper = "a fully_shard, which takes each rank's experts for the same ones: what it "
        wrapper += "gathers are pieces of different experts"
    else:
        return
    raise ValueError(
        f"{layer or 'ExpertParallel'} is in {wrapper}: build the model anew and give it to "
        "ExpertDataParallel"
    )
