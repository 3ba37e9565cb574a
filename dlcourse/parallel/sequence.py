"""Sequence parallelism beside tensor parallelism: between the matrices, each rank keeps T/p rows.

An all-reduce is a reduce-scatter and an all-gather. Tensor parallelism does both at once, and so
every rank computes the same LayerNorms and residuals on the same whole stream. Here the stream
stays scattered between the two halves:

    leave = reduce-scatter along T  →  residual, LayerNorm on T/p positions  →  enter = all-gather

The bytes are the same, and what LayerNorm and residual keep for backward is p times smaller.

Shape suffixes as in gpt.py; S = T/p positions of one rank.
Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", 2022,
https://arxiv.org/abs/2205.05198, section 4.2. (Megatron also throws the gathered stream away and
gathers it again in backward; this code keeps it.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from dlcourse.collectives import direct
from dlcourse.collectives.buffers import views_like
from dlcourse.collectives.compat import all_gather_single, reduce_scatter_single
from dlcourse.collectives.p2p import Group
from dlcourse.models.gpt import GPT
from dlcourse.parallel.divisibility import check_tensor_parallel, equal_part
from dlcourse.parallel.hooks import scale_gradient
from dlcourse.parallel.replicas import broadcast_module
from dlcourse.parallel.sendable import cut_parameters, group_size
from dlcourse.parallel.tensor import TensorParallelGPT
from dlcourse.parallel.tensor_checks import check_stream, check_vocabulary, check_whole


def _joined(x_BSC: Tensor, group: Group) -> Tensor:
    """All-gather along the sequence: (B, S, C) -> (B, T, C)."""
    size = dist.get_world_size(group)
    parts_pBSC = x_BSC.new_empty(size, *x_BSC.shape)
    all_gather_single(parts_pBSC.flatten(0, 1), x_BSC.contiguous(), group=group)
    return parts_pBSC.transpose(0, 1).flatten(1, 2)


def _summed_part(x_BTC: Tensor, group: Group) -> Tensor:
    """Reduce-scatter along the sequence: (B, T, C) -> (B, S, C)."""
    size = dist.get_world_size(group)
    parts_pBSC = x_BTC.unflatten(1, (size, -1)).transpose(0, 1).contiguous()
    mine_BSC = torch.empty_like(parts_pBSC[0])
    if dist.get_backend(group) == "gloo":  # whose own reduce-scatter sends as an all-reduce does
        direct.reduce_scatter(mine_BSC, parts_pBSC, group=group)
    else:
        reduce_scatter_single(mine_BSC, parts_pBSC.flatten(0, 1), group=group)
    return mine_BSC


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BSC: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _joined(x_BSC, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTC: Tensor) -> tuple[Tensor, None]:
        return _summed_part(grad_BTC, ctx.group), None


class _ScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTC: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _summed_part(x_BTC, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BSC: Tensor) -> tuple[Tensor, None]:
        return _joined(grad_BSC, ctx.group), None


def gather_sequence(x_BSC: Tensor, group: Group = None) -> Tensor:
    """Into the parallel region: all-gather. Backward: reduce-scatter. (B, S, C) -> (B, T, C)."""
    return _GatherSequence.apply(x_BSC, group)


def reduce_scatter_sequence(x_BTC: Tensor, group: Group = None) -> Tensor:
    """Out of the region: reduce-scatter. Backward: all-gather. (B, T, C) -> (B, S, C)."""
    return _ScatterSequence.apply(x_BTC, group)


class SequenceParallelGPT(TensorParallelGPT):
    """As ``TensorParallelGPT``, with the stream cut along the sequence between the matrices.

    Use ``sequence_parallel`` to make one, and call ``sync_gradients()`` after backward.
    """

    def __init__(self, gpt: GPT, process_group: Group = None) -> None:
        super().__init__(gpt, process_group, enter=gather_sequence, leave=reduce_scatter_sequence)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        size = dist.get_world_size(self.process_group)
        equal_part("sequence length", tokens_BT.size(1), size)
        return super().forward(tokens_BT, targets_BT)

    def positions(self, T: int, device: torch.device) -> Tensor:
        size, rank = dist.get_world_size(self.process_group), dist.get_rank(self.process_group)
        return torch.arange(T, device=device).chunk(size)[rank]

    def whole_parameters(self) -> list[nn.Parameter]:
        """Those that every rank holds whole and uses for its own positions only."""
        cut = cut_parameters(self)
        return [p for p in self.parameters() if p.requires_grad and p not in cut]

    @torch.no_grad()
    def sync_gradients(self) -> None:
        """Sum these gradients over the ranks, in one message. After backward, before the step."""
        used = [p for p in self.whole_parameters() if p.grad is not None]
        if not used:
            return
        size = dist.get_world_size(self.process_group)
        for parameter in used:
            scale_gradient(parameter, size)  # then the sum is a mean
        gradients = [p.grad for p in used if p.grad is not None]
        row = torch.cat([gradient.flatten() for gradient in gradients]) / size
        dist.all_reduce(row, group=self.process_group)
        for gradient, total in zip(gradients, views_like(row, gradients), strict=True):
            gradient.copy_(total)


def sequence_parallel(gpt: GPT, process_group: Group | DeviceMesh = None) -> SequenceParallelGPT:
    """Cut a GPT and its stream over the ranks. Arguments as ``tensor_parallel``.

    Raises:
        ValueError: as ``tensor_parallel``, and for a layer that this cannot cut, such as experts.
    """
    if isinstance(process_group, DeviceMesh):
        process_group = process_group.get_group()
    size = group_size(process_group)
    check_tensor_parallel(n_head=gpt.config.n_head, n_embd=gpt.config.n_embd, size=size)
    check_whole(gpt)
    check_vocabulary(gpt)
    check_stream(gpt)
    broadcast_module(gpt, process_group=process_group)
    return SequenceParallelGPT(gpt, process_group)
