"""The two layers of tensor parallelism, and the three functions that connect the ranks.

A matrix W of shape (out, in) can be cut in two ways. The ranks' shares of ``x @ W.T`` are then

    by columns  (rows of torch's W):  a part of the output each, complete. Joined by all-gather.
    by rows     (columns of W):       the whole output each, a summand. Joined by all-reduce.

("Columns" is Megatron's word: it writes x @ A, and torch stores A transposed.) Column first, row
second: the column layer's output is just the part of x that the row layer needs, so nothing is
sent between them.

Shape suffixes as in gpt.py; I and O are a layer's inputs and outputs, p the number of ranks.
Source: Shoeybi et al., "Megatron-LM", 2019, https://arxiv.org/abs/1909.08053, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dlcourse.collectives.p2p import Group
from dlcourse.parallel.divisibility import equal_part, padded_size
from dlcourse.parallel.known_code import check_known
from dlcourse.parallel.part_state import PARTS, PartialLayer


class _CopyTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _ReduceFrom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        size, rank = dist.get_world_size(ctx.group), dist.get_rank(ctx.group)
        return grad.chunk(size, dim=-1)[rank].contiguous(), None


def copy_to(x: Tensor, group: Group = None) -> Tensor:
    """Into the parallel region: nothing to do. Backward: **sum** the ranks' gradients of x.

    Each rank's matrix uses all of x, so each rank knows a summand of the gradient only.
    """
    return _CopyTo.apply(x, group)


def reduce_from(x: Tensor, group: Group = None) -> Tensor:
    """Out of the parallel region: **sum** the ranks' summands. Backward: nothing to do."""
    return _ReduceFrom.apply(x, group)


def gather(x: Tensor, group: Group = None) -> Tensor:
    """Join the ranks' parts of the last dimension: (..., O/p) -> (..., O). Backward: cut."""
    return _Gather.apply(x.contiguous(), group)


def shard(
    parameter: Tensor, *, dim: int, group: Group = None, padded: int | None = None
) -> nn.Parameter:
    """This rank's part of a parameter along ``dim``, in memory of its own.

    Args:
        padded: cut as if ``dim`` had this length, with zeros at the end.
    """
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    length = parameter.size(dim)
    width = equal_part("length", padded or length, size)
    first = min(rank * width, length)
    mine = parameter.detach().narrow(dim, first, min(width, length - first))
    shape = [*parameter.shape]
    shape[dim] = width
    piece = parameter.detach().new_zeros(shape)
    piece.narrow(dim, 0, mine.size(dim)).copy_(mine)
    part = nn.Parameter(piece, requires_grad=parameter.requires_grad)
    PARTS[part] = group
    return part


class ColumnParallelLinear(PartialLayer):
    """Each rank computes ``O / p`` of the outputs.

    Args:
        linear: the whole layer, equal in all ranks.
        process_group: the ranks that share it; all by default.
        enter: what x passes first; ``None`` where the caller has done that already.
        gather_output: give every rank the whole output. Megatron avoids that.
        pad: outputs that do not divide get zeros at the end, else they are refused.

    Raises:
        ValueError: the ranks cannot have equal parts of the outputs, or a layer that is more than
            an ``nn.Linear``.
    """

    cut = ("weight", "bias")  # of these each rank has its own part

    def __init__(
        self,
        linear: nn.Linear,
        process_group: Group = None,
        *,
        enter: Callable[[Tensor, Group], Tensor] | None = copy_to,
        gather_output: bool = False,
        pad: bool = False,
    ) -> None:
        super().__init__()
        check_known(linear, nn.Linear, "linear", "ColumnParallelLinear cuts it")
        size = dist.get_world_size(process_group)
        self.process_group, self.enter, self.gather_output = process_group, enter, gather_output
        self.in_features, self.out_features = linear.in_features, linear.out_features
        padded = padded_size(self.out_features, size) if pad else self.out_features
        equal_part("out_features", padded, size)
        self.weight = shard(linear.weight, dim=0, group=process_group, padded=padded)  # (O/p, I)
        self.bias = None
        if linear.bias is not None:
            self.bias = shard(linear.bias, dim=0, group=process_group, padded=padded)  # (O/p,)

    def forward(self, x_BTI: Tensor) -> Tensor:
        if self.enter is not None:
            x_BTI = self.enter(x_BTI, self.process_group)
        y = F.linear(x_BTI, self.weight, self.bias)  # (B, T, O/p)
        return gather(y, self.process_group)[..., : self.out_features] if self.gather_output else y


class RowParallelLinear(PartialLayer):
    """Each rank takes ``I / p`` of the inputs, and computes a summand of every output.

    Args:
        linear, process_group: as above.
        leave: what joins the summands.

    Raises:
        ValueError: the ranks cannot have equal parts of the inputs; and as above.
    """

    cut = ("weight",)  # the bias is the same in all ranks

    def __init__(
        self,
        linear: nn.Linear,
        process_group: Group = None,
        *,
        leave: Callable[[Tensor, Group], Tensor] = reduce_from,
    ) -> None:
        super().__init__()
        check_known(linear, nn.Linear, "linear", "RowParallelLinear cuts it")
        self.process_group, self.leave = process_group, leave
        self.in_features, self.out_features = linear.in_features, linear.out_features
        equal_part("in_features", self.in_features, dist.get_world_size(process_group))
        self.weight = shard(linear.weight, dim=1, group=process_group)  # (O, I/p)
        # Whole in every rank, and added once: after the sum
        self.bias: nn.Parameter | None = linear.bias

    def forward(self, x: Tensor) -> Tensor:  # (B, T, I/p)
        y_BTO = self.leave(F.linear(x, self.weight), self.process_group)
        return y_BTO if self.bias is None else y_BTO + self.bias
