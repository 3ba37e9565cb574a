"""Rows travel between ranks, in two halves, and their gradients travel back.

    y = trip.start(x)        all-to-all begins; y is not there yet
    ...                      the rank computes something else: a shared expert, for example
    y = trip.finish(y)       now it is

Backward meets the halves in the other order: where ``finish`` was, gradients begin to travel back,
and where ``start`` was, they have arrived. Autograd runs the newest node that is ready, so what was
computed between the halves has its backward between them too.

Shape suffixes: M rows that leave this rank, G rows that it gets, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlcourse.collectives.p2p import Group

# Called as dist.all_to_all_single is: (output, input, rows from each rank, rows to each rank,
# group=...). May return something to wait() for; then the rank computes meanwhile. Where it has a
# method gather(output, input, group=...), the counts go by it; else by torch's all-gather.
Exchange = Callable[..., Any]
torch_exchange: Exchange = partial(dist.all_to_all_single, async_op=True)


class Trip:
    """One all-to-all of rows, in two halves: between them the rank may compute something else.

    Backward is the same trip the other way round, also in two halves: it begins where forward
    ended, and whatever was computed in between in forward has its backward in between too.

    Args:
        sent, received: rows to and from each rank of the group.
    """

    def __init__(
        self, sent: list[int], received: list[int], group: Group, exchange: Exchange
    ) -> None:
        self.sent, self.received, self.group, self.exchange = sent, received, group, exchange
        self.under_way: tuple[Any, Any, Any] = None, None, None

    def start(self, x_MC: Tensor) -> Tensor:
        """Send the rows. What is returned is not to be read before ``finish``. (M, C) to (G, C)."""
        return _Start.apply(x_MC, self)

    def finish(self, y_GC: Tensor) -> Tensor:
        """Wait for the rows."""
        return _Finish.apply(y_GC, self)

    def leave(self, x_MC: Tensor, sent: list[int], received: list[int]) -> Tensor:
        y_GC = x_MC.new_empty(sum(received), *x_MC.shape[1:])
        x_MC = x_MC.contiguous()
        work = self.exchange(y_GC, x_MC, received, sent, group=self.group)
        self.under_way = work, y_GC, x_MC  # both are to stay where they are until it has arrived
        return y_GC

    def arrive(self) -> Tensor:
        (work, y_GC, _), self.under_way = self.under_way, (None, None, None)
        if hasattr(work, "wait"):
            work.wait()
        return y_GC


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MC: Tensor, trip: Trip) -> Tensor:
        ctx.trip = trip
        return trip.leave(x_MC, trip.sent, trip.received)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.trip.arrive(), None


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_GC: Tensor, trip: Trip) -> Tensor:
        ctx.trip = trip
        trip.arrive()
        return y_GC.view_as(y_GC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_GC: Tensor) -> tuple[Tensor, None]:
        ctx.trip.leave(grad_GC, ctx.trip.received, ctx.trip.sent)
        return grad_GC, None  # of the shape that torch expects here; _Start has the one that counts
