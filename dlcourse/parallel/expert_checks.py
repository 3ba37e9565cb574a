"""What expert parallelism refuses, in all ranks at once: one that stops alone hangs the others."""

from __future__ import annotations

import zlib

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parallel import DistributedDataParallel

from dlcourse.collectives.compat import all_gather_single
from dlcourse.collectives.p2p import Group
from dlcourse.models.moe import MoE, Routing
from dlcourse.parallel.divisibility import check_expert_parallel
from dlcourse.parallel.sendable import check_same_everywhere


def check_model(model: nn.Module, process_group: Group, batch_group: Group) -> None:
    """Raise a ``ValueError`` in every rank where one of them cannot divide its experts."""
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
            check_expert_parallel(
                num_experts=layer.num_experts,
                size=len(ranks),
                capacity_factor=layer.capacity_factor,
            )
        except ValueError as error:
            return f"{name or type(layer).__name__}: {error}"
    return ""


def gather_counts(counts_E: Tensor, routing: Routing, group: Group, layer: str) -> Tensor:
    """How many copies each rank has for each expert. Shape: (E,) in each rank to (R, E) in all.

    One all-gather of E + 2 numbers a rank. With them goes how many tokens have no route: where
    that is not 0 in one rank, all stop here, and none waits for rows that never come.

    Raises:
        ValueError: in every rank, where the router of one gave NaN or an infinity.
    """
    N = len(routing.logits_NE)
    lost = N - routing.logits_NE.isfinite().all(1).sum()
    mine = torch.cat([counts_E, torch.stack([lost, torch.full_like(lost, N)])])
    gathered = mine.new_empty(dist.get_world_size(group) * len(mine))
    all_gather_single(gathered, mine, group=group)
    gathered = gathered.view(-1, len(mine))
    counts_RE, lost_R, tokens_R = gathered[:, :-2], gathered[:, -2], gathered[:, -1]
    if lost_R.any():
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        shares = [
            f"rank {rank}: {bad} of {all_} tokens ({bad / all_:.0%})"
            for rank, bad, all_ in zip(ranks, lost_R.tolist(), tokens_R.tolist(), strict=True)
            if bad
        ]
        raise ValueError(
            f"the router of {layer or 'this layer'} gives logits that are NaN or infinite in "
            + "; ".join(shares)
            + ". Nothing was sent. Look at that rank's input, and at the learning rate"
        )
    return counts_RE


def refuse_ddp(layer: str) -> None:
    """Raise a ``ValueError`` inside the forward pass of torch's DDP."""
    if DistributedDataParallel._get_active_ddp_module() is not None:
        raise ValueError(
            f"{layer or 'ExpertParallel'} is in a DistributedDataParallel, which averages each "
            "rank's experts as if they were the same, and has made them rank 0's: build the model "
            "anew and give it to ExpertDataParallel"
        )
