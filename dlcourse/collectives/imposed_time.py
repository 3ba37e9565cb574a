"""Ranks of one machine whose messages and computing take times that are given.

On a laptop all ranks share a few cores and one memory: four ranks compute no faster than two, and
a message costs what the kernel's copying costs. What pays off on a network, a ring for large
tensors or communication behind computing, cannot be seen there. So here the times are imposed and
all else is real: the processes, the messages, their order, and the numbers in them.

    with imposed_link(latency=1e-3, bandwidth=100e6):   # 1 ms, 100 MB/s
        ring_all_reduce(tensor)

    takes(layer, forward=0.01, backward=0.02)           # and a layer that takes 30 ms

Each rank has one network card, which sends one message at a time and receives one at a time, both
at once, as in the alpha-beta model (`dlcourse.formulas.collective_time`). A message is sent at once
in truth; whoever waits for it sleeps until it would have arrived. Nobody sleeps who does not wait,
so what a program hides behind its computing is hidden here, too; and a sleeping rank needs no core.

Torch's own all-reduce, reduce-scatter and all-gather of all ranks take what a ring would.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup, Work

from dlcourse.formulas.collective_time import CostModel

SLOTS = 4096  # messages of a pair of ranks that may be under way at once
_RINGS = {  # torch's collectives: the ring that each stands for, and which argument is the whole
    "allreduce": ("ring_all_reduce", 0),
    "_reduce_scatter_base": ("ring_reduce_scatter", 1),
    "_allgather_base": ("ring_all_gather", 0),
}
_UNKNOWN = (
    *("broadcast", "reduce", "allgather", "gather", "scatter", "reduce_scatter", "alltoall"),
    *("alltoall_base", "recv_anysource"),
)
_in_use: list[_Card] = []


@contextmanager
def imposed_link(*, latency: float, bandwidth: float) -> Iterator[CostModel]:
    """Within it, messages between the ranks take as long as on a link of this kind.

    To be entered by all ranks together: the first thing they do is agree on a file of times.
    Messages between two ranks must be received in the order in which they were sent.

    Args:
        latency: seconds from the end of sending to the arrival, for each message.
        bandwidth: bytes a second of each rank's card, out and in.

    Yields:
        the model that says what an algorithm takes: ``predict("ring_all_reduce", nbytes, p)``.

    Raises:
        ValueError: a time or a bandwidth that cannot be, a link within a link, or (when it is
            called) a collective of torch's that has no imposed time.
    """
    for name, value, least in (("latency", latency, 0.0), ("bandwidth", bandwidth, 1.0)):
        if not (least <= value < math.inf):
            raise ValueError(f"{name}={value!r}: give a finite number of at least {least:g}")
    if _in_use:
        raise ValueError("imposed_link inside another one: leave the first one before")
    card = _Card(CostModel(latency, 1 / bandwidth))
    _in_use.append(card)
    replaced = card.install()
    try:
        yield card.model
    finally:
        for holder, name, original in reversed(replaced):
            setattr(holder, name, original)
        _in_use.clear()


def compute(seconds: float) -> None:
    """Be busy for so long, without a core."""
    time.sleep(seconds)


def takes(module: nn.Module, *, forward: float, backward: float) -> nn.Module:
    """Let a module take so many seconds forward and backward, besides what it computes.

    The gradients of its parameters are there only after the seconds of its backward. For modules
    that return one tensor. Returns the module itself; ``module.imposed.remove()`` ends it.
    """
    for name, seconds in (("forward", forward), ("backward", backward)):
        if not 0 <= seconds < math.inf:
            raise ValueError(f"{name}={seconds!r}: give a finite number of seconds, 0 or more")

    def slow(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        compute(forward)
        return _Pause.apply(output, backward) if torch.is_grad_enabled() else output

    module.imposed = module.register_forward_hook(slow)  # type: ignore[assignment]
    return module


class _Pause(torch.autograd.Function):
    """Nothing forward; backward it waits before the gradient goes on into the module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        compute(ctx.seconds)
        return gradients[0], None


class _Card:
    """This rank's network card: until when it is busy, and when messages leave and arrive.

    Times are of the machine's one clock (`time.monotonic`), in a file that all ranks have in their
    memory: when each message has left its card, and when each rank has begun each collective.
    """

    def __init__(self, model: CostModel) -> None:
        self.model, self.rank, self.size = model, dist.get_rank(), dist.get_world_size()
        self.left, self.begun = _shared_times(self.rank, self.size)
        self.free_out = self.free_in = self.free_collective = 0.0
        self.expected: dict[tuple[int, int, int], float] = {}  # seconds of each in the card
        self.through: dict[tuple[int, int, int], float] = {}  # when those that came were through
        self.sent, self.received = [0] * self.size, [0] * self.size
        self.collectives = 0
        self.waits: dict[int, tuple[weakref.ref[Work], Callable[[], float]]] = {}

    def install(self) -> list[tuple[Any, str, Any]]:
        """Stand between torch's calls and its process groups; returns what to put back."""
        wrappers: list[tuple[Any, str, Callable[[Any], Any]]] = [
            (Work, "wait", self._waited),
            (ProcessGroup, "send", self._leaving),
            (ProcessGroup, "recv", self._arriving),
        ]
        wrappers += [
            (ProcessGroup, name, lambda call, ring=ring: self._in_ring(call, *ring))  # type: ignore[misc]
            for name, ring in _RINGS.items()
        ]
        wrappers += [
            (ProcessGroup, name, lambda _, name=name: _refusing(name))  # type: ignore[misc]
            for name in _UNKNOWN
        ]
        replaced = []
        for holder, name, wrap in wrappers:
            replaced.append((holder, name, vars(holder)[name]))  # as it is there: it must bind
            setattr(holder, name, wrap(getattr(holder, name)))
        return replaced

    def _waited(self, wait: Any) -> Any:
        def waited(work: Work, *args: Any, **kwargs: Any) -> Any:
            result = wait(work, *args, **kwargs)
            _, until = self.waits.pop(id(work), (None, None))
            if until is not None:
                sleep_until(until())
            return result

        return waited

    def _note(self, work: Work, until: Callable[[], float]) -> Work:
        number = id(work)
        dropped = weakref.ref(work, lambda _: self.waits.pop(number, None))
        self.waits[number] = (dropped, until)
        return work

    def _leaving(self, send: Any) -> Any:
        def leaving(group: ProcessGroup, tensors: list[Tensor], to: int, tag: int) -> Work:
            peer = dist.get_global_rank(group, to)
            seconds = self.model.beta * _nbytes(tensors)
            self.free_out = end = max(time.monotonic(), self.free_out) + seconds
            self.left[self.rank, peer, self.sent[peer] % SLOTS] = end
            self.sent[peer] += 1
            return self._note(send(group, tensors, to, tag), lambda: end)

        return leaving

    def _arriving(self, recv: Any) -> Any:
        def arriving(group: ProcessGroup, tensors: list[Tensor], source: int, tag: int) -> Work:
            peer = dist.get_global_rank(group, source)
            place = (peer, self.rank, self.received[peer] % SLOTS)
            self.received[peer] += 1
            self.expected[place] = self.model.beta * _nbytes(tensors)
            work = recv(group, tensors, source, tag)
            return self._note(work, lambda: self._through_card(place))

        return arriving

    def _through_card(self, place: tuple[int, int, int]) -> float:
        """When the message at this place of the table is through this rank's card.

        The card takes messages in the order of their arrival, whichever is waited for first. All
        that arrive before this one have left their senders when it arrives: so it sleeps till then.
        """
        if place not in self.through:
            sleep_until(float(self.left[place]) + self.model.alpha)
            left = {p: float(self.left[p]) for p in self.expected}
            came = sorted((end, p) for p, end in left.items() if 0 < end <= left[place])
            for end, p in came:
                self.free_in = max(end + self.model.alpha, self.free_in + self.expected.pop(p))
                self.through[p] = self.free_in
                self.left[p] = 0.0  # free for another message
        return self.through.pop(place)

    def _in_ring(self, call: Any, ring: str, whole: int) -> Any:
        def in_ring(group: ProcessGroup, *args: Any) -> Work:
            if group.size() != self.size:
                raise ValueError(
                    f"imposed_link: a collective of {group.size()} of {self.size} ranks has no "
                    "imposed time. Use one of all ranks, or messages"
                )
            tensors = args[whole] if isinstance(args[whole], list) else [args[whole]]
            seconds = self.model.predict(ring, _nbytes(tensors), self.size)
            slot = self.collectives % SLOTS
            self.collectives += 1
            self.begun[self.rank, slot] = time.monotonic()

            def until() -> float:  # all have begun it, now that it has ended
                begin = float(self.begun[:, slot].max())
                self.free_collective = max(begin, self.free_collective) + seconds
                return self.free_collective

            return self._note(call(group, *args), until)

        return in_ring


def sleep_until(moment: float) -> None:
    """Sleep until `time.monotonic` says so."""
    while (left := moment - time.monotonic()) > 0:
        time.sleep(left)


def _shared_times(rank: int, size: int) -> tuple[Any, Any]:
    """Two tables that all ranks see: [from, to, message] and [rank, collective], in seconds."""
    numbers = size * size * SLOTS + size * SLOTS
    name: list[str | None] = [None]
    if rank == 0:
        handle, name[0] = tempfile.mkstemp(prefix="dlc-times-")
        os.truncate(handle, 8 * numbers)
        os.close(handle)
    dist.broadcast_object_list(name, 0)
    assert name[0] is not None
    table = np.memmap(name[0], dtype=np.float64, mode="r+", shape=(numbers,))
    dist.barrier()
    if rank == 0:
        os.unlink(name[0])  # it is gone with the last rank that has it
    messages, collectives = np.split(table, [size * size * SLOTS])
    return messages.reshape(size, size, SLOTS), collectives.reshape(size, SLOTS)


def _nbytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _refusing(name: str) -> Any:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        known = "all_reduce, reduce_scatter_tensor, all_gather_into_tensor, send and receive"
        raise ValueError(f"imposed_link: {name} has no imposed time. Within it use {known}")

    return refuse
