"""`low_latency` under a layer of experts: rows and counts, without one message of Gloo's.

    exchange = LowLatencyExchange(capacity=256)           # rows from one rank to another, at most
    model = expert_parallel(model, exchange=exchange)     # or ExpertDataParallel(..., exchange=)

A layer's trips are all alike, so here is no dispatch and no combine: each is a call with the
arguments of ``all_to_all_single``. How many rows came from each rank stands in what says that they
are there (the flag, or the first word of the payload), and is compared with what the layer expects.
What the layer must know before that, how many rows each rank has for each expert, is itself one row
from each rank to each (`gather`): it goes through places of its own in the same way.

        rank 0                                        memory of rank 1
    gather         counts of all experts   ────────>  place of rank 0:  [ 1 row ]   [ call 9 | 1 ]
    rows           tokens for its experts  ────────>  place of rank 0:  [ t t t ]   [ call 9 | 3 ]

Order is that of `low_latency`, in its places: data, fence, flag; and flag, fence, data. Two places
in turn suffice, for a call returns after it has copied out what came: who writes where it wrote two
calls ago has seen the call in between from the reader, who had then read. That those loads come
before that call's flag is due to its fence, on x86 and on Arm; by payload, which is x86's alone, to
loads and stores in order. What is returned is the layer's own: autograd may keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.buffers import check_all_to_all, check_member, check_same_dtype
from dlcourse.collectives.low_latency import LowLatency
from dlcourse.collectives.mailboxes import check_plain

Group = dist.ProcessGroup | None


class LowLatencyExchange:
    """An all-to-all of rows with room for ``capacity`` of them from each rank, for one model.

    Args:
        capacity: rows from one rank to one other in a call, at most: more are refused, never
            dropped. A rank's tokens x top_k are always enough; each pair of ranks takes twice that
            in memory, four times by payload.
        ready: how a rank knows that data has arrived: by a "flag", or by the "payload" itself.

    Raises:
        ValueError: capacity or ready cannot be, in the first call and in all ranks.
    """

    def __init__(self, capacity: int, *, ready: Literal["flag", "payload"] = "flag") -> None:
        self.capacity, self.ready = capacity, ready
        self._buffers: dict[tuple[Any, ...], LowLatency] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the model has memory of its own, from its first call on
        return partial(LowLatencyExchange, self.capacity, ready=self.ready), ()

    def __call__(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Sequence[int] | None = None,
        input_split_sizes: Sequence[int] | None = None,
        group: Group = None,
    ) -> None:
        """Part k of this rank's `input` becomes part r of rank k's `output`.

        Args:
            output, input: contiguous, on the CPU, cut along dimension 0. Shape: (rows, ...).
            output_split_sizes, input_split_sizes: rows from and to each rank; equal if None.
            group: the ranks that take part, all on one machine; the default group if None.

        Raises:
            ValueError: arguments that cannot be, or more rows for a rank than the capacity, or
                another rank sends other rows than expected. The other ranks raise too.
            RuntimeError: another rank has ended or failed, or did not come in the group's time.
        """
        buffer = self._buffer(self.capacity, prod(input.shape[1:]), input.dtype, group)
        places = buffer.usable_places()
        places.begin("all_to_all", (input, output), input.numel() * input.itemsize)
        with places:
            check_plain(input, "input")
            check_plain(output, "output")
            sent, expected = check_all_to_all(
                output, input, output_split_sizes, input_split_sizes, places.size, group
            )
            if prod(output.shape[1:]) != places.width:
                raise ValueError(
                    f"a row of output has shape {tuple(output.shape[1:])}, one of input "
                    f"{tuple(input.shape[1:])}: make them equally long"
                )
            self._check_capacity(sent)
            starts = [sum(sent[:k]) for k in range(places.size)]
            came = buffer.exchange(input, starts, sent)
            if came != expected:
                raise ValueError(
                    f"output_split_sizes is {expected}, and the ranks send {came} rows: what one "
                    "sends the other must expect. Let each know the others' counts: gather"
                )
            rows = output.detach().view(-1, places.width)
            for k, part in enumerate(rows.split(expected)):
                part.copy_(places.inbox_PKC[k, : expected[k]])

    def gather(self, output: Tensor, input: Tensor, group: Group = None) -> None:
        """Part r of `output` is rank r's `input`, in every rank: as ``all_gather_single``.

        Args:
            output: contiguous, on the CPU. Shape: (p * n, ...).
            input: contiguous, on the CPU, of the same size in all ranks. Shape: (n, ...).
            group: as above.

        Raises:
            ValueError, RuntimeError: as above.
        """
        buffer = self._buffer(1, input.numel(), input.dtype, group)
        places = buffer.usable_places()
        size = output.numel() * output.itemsize
        places.begin("all_gather", (input, output), size, collective="all_gather")
        with places:
            check_plain(input, "input")
            check_plain(output, "output")
            check_same_dtype(output, input)
            if output.numel() != places.size * input.numel():
                raise ValueError(
                    f"output has {output.numel()} elements: {places.size} ranks with "
                    f"{input.numel()} each make {places.size * input.numel()}"
                )
            if not output.is_contiguous() or not input.is_contiguous():
                raise ValueError("output or input is not contiguous: call contiguous() first")
            buffer.exchange(input, [0] * places.size, [1] * places.size)
            output.detach().view(places.size, -1).copy_(places.inbox_PKC[:, 0])

    def _buffer(self, capacity: int, width: int, dtype: torch.dtype, group: Group) -> LowLatency:
        """Made by all ranks at their first call of this kind, with torch's own collectives."""
        check_member(group)
        key = group, capacity, width, dtype
        if key not in self._buffers:
            self._buffers[key] = LowLatency(capacity, width, dtype, group, ready=self.ready)
        return self._buffers[key]

    def _check_capacity(self, sent: Sequence[int]) -> None:
        if max(sent) > self.capacity:
            raise ValueError(
                f"{max(sent)} rows go to one rank (input_split_sizes is {sent}) and "
                f"capacity={self.capacity}: none is dropped. Make LowLatencyExchange with "
                f"capacity={max(sent)} or more in all ranks (tokens of a rank x top_k is always "
                "enough), or the MoE with a capacity_factor"
            )
