"""Point to point: what every collective in this folder is built from, and all else that is sent.

    isend, irecv      one message, and ``wait()``
    exchange          several at once, to and from several ranks (``start_exchange`` does not wait)
    RingNeighbours    a stream of messages, from one neighbour and to the other

A message is posted first and waited for later, so that several can travel at once. Two things that
torch's Gloo expects are kept here, so that the collectives can be read without them:

- Receive before send. A send whose receiver is ready goes out at once; any other must first
  ask the receiver and wait for its answer.
- Memory of the CPU. Ranks that share a GPU talk over Gloo, too: with `isend` and `irecv` a tensor
  takes the way over a copy on the CPU. Not run on a GPU yet.

And one that it does not: a message meets only a buffer of its own size and dtype (``tag_of``). Gloo
would put a short message, or numbers of another type, into any buffer without a word, and end the
process where a message is too long. With tags such ranks wait for each other, and are told so.

NCCL expects something else: a send and the receive that goes with it are posted together.
"""

from __future__ import annotations

import functools
import zlib
from collections import deque
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.buffers import check_member, note_change

Group = dist.ProcessGroup | None  # None is the group of all ranks


class PendingMessage:
    """A message under way, which keeps its memory alive.

    ``wait()`` may be called again; on one of Gloo's own that would never return.
    """

    def __init__(self, work: dist.Work, buffer: Tensor, received: Tensor | None = None) -> None:
        self.work: dist.Work | None = work
        self.buffer, self.received = buffer, received

    def wait(self) -> None:
        """Until it has left, or has arrived in its tensor."""
        work, self.work = self.work, None
        if work is None:
            return
        work.wait()
        if self.received is not None and self.buffer is not self.received:
            self.received.copy_(self.buffer)


def isend(
    tensor: Tensor, to: int, group: Group = None, *, tag: int | None = None
) -> PendingMessage:
    """Start to send ``tensor.nbytes`` to one rank. Do not change ``tensor`` before ``wait()``.

    Args:
        to: the other rank's number in the group.
        tag: only a receive with the same tag takes the message; by default that of tensors of
            this size and type. NCCL knows no tags.
    """
    buffer = tensor.cpu() if goes_over_cpu(tensor, group) else tensor
    tag = tag_of(buffer) if tag is None else tag
    work = dist.isend(buffer, group=group, group_dst=_peer("to", to, group), tag=tag)
    return PendingMessage(_posted(work), buffer)


def irecv(
    tensor: Tensor, source: int, group: Group = None, *, tag: int | None = None
) -> PendingMessage:
    """Start to receive ``tensor.nbytes`` from one rank. They are there after ``wait()``."""
    over_cpu = goes_over_cpu(tensor, group)
    buffer = torch.empty_like(tensor, device="cpu") if over_cpu else tensor
    tag = tag_of(buffer) if tag is None else tag
    work = dist.irecv(buffer, group=group, group_src=_peer("source", source, group), tag=tag)
    note_change(tensor)
    return PendingMessage(_posted(work), buffer, tensor)


def goes_over_cpu(tensor: Tensor, group: Group) -> bool:
    """Whether the group cannot send from this tensor's memory."""
    return tensor.device.type != "cpu" and dist.get_backend(group) == "gloo"


def exchange(
    *,
    sends: Sequence[tuple[Tensor, int]],
    receives: Sequence[tuple[Tensor, int]],
    group: Group = None,
) -> None:
    """Send and receive all of these at once, in any order of arrival, and wait for all.

    Args:
        sends, receives: tensors, each with the other rank's number in the group.
    """
    for work in start_exchange(sends=sends, receives=receives, group=group):
        work.wait()


def start_exchange(
    *,
    sends: Sequence[tuple[Tensor, int]],
    receives: Sequence[tuple[Tensor, int]],
    group: Group = None,
) -> list[dist.Work]:
    """As `exchange`, without waiting: wait for each that is returned, once."""
    ops = [_op(dist.irecv, buffer, _peer("receives", k, group), group) for buffer, k in receives]
    ops += [_op(dist.isend, tensor, _peer("sends", k, group), group) for tensor, k in sends]
    works = dist.batch_isend_irecv(ops) if ops else []
    for buffer, _ in receives:
        note_change(buffer)
    return works


class RingNeighbours:
    """A stream of messages to the rank `to`, and one from the rank `source`.

    Messages arrive in the order in which they were sent. Each `expect` goes with the `send` at
    the same position: on NCCL the two are posted together, as one operation.

    Args:
        to, source: numbers of ranks in the group.
        device: where the buffers live.
        group: the process group; the default one if None.
    """

    def __init__(self, *, to: int, source: int, device: torch.device, group: Group) -> None:
        self.to, self.source, self.group = to, source, group
        self.post_at_once = device.type == "cpu"
        self.unposted: deque[Tensor] = deque()
        self.arriving: deque[list[dist.Work]] = deque()
        self.leaving: list[dist.Work] = []

    def expect(self, buffer: Tensor) -> None:
        """The next message goes into `buffer`. Leave that alone until `arrive` returns."""
        if self.post_at_once:
            tag = tag_of(buffer)
            source = _peer("source", self.source, self.group)
            work = dist.irecv(buffer, group=self.group, group_src=source, tag=tag)
            note_change(buffer)
            self.arriving.append([_posted(work)])
        else:
            self.unposted.append(buffer)

    def send(self, tensor: Tensor) -> None:
        """Start to send ``tensor.nbytes`` to `to`. Do not change `tensor` before `close`."""
        if self.post_at_once:
            to = _peer("to", self.to, self.group)
            work = dist.isend(tensor, group=self.group, group_dst=to, tag=tag_of(tensor))
            self.leaving.append(_posted(work))
        else:
            receives, sends = [(self.unposted.popleft(), self.source)], [(tensor, self.to)]
            works = start_exchange(sends=sends, receives=receives, group=self.group)
            self.arriving.append(works)

    def arrive(self) -> None:
        """Wait until the oldest expected message is in its buffer."""
        for work in self.arriving.popleft():
            work.wait()

    def close(self) -> None:
        """Wait until everything sent has left."""
        for work in self.leaving:
            work.wait()


def tag_of(tensor: Tensor) -> int:
    """The number that a message and its buffer must have in common: made of size and dtype."""
    return _tag(tensor.numel(), tensor.dtype)


@functools.lru_cache(maxsize=1024)
def _tag(numel: int, dtype: torch.dtype) -> int:
    return zlib.crc32(f"{numel} {dtype}".encode()) >> 1  # 31 bits


def _op(
    call: Callable[..., dist.Work | None], buffer: Tensor, rank: int, group: Group
) -> dist.P2POp:
    return dist.P2POp(call, buffer, group=group, group_peer=rank, tag=tag_of(buffer))


def _peer(name: str, rank: int, group: Group) -> int:
    """Refuse what is no other rank of the group: for such a number Gloo ends the process."""
    check_member(group)
    mine, size = dist.get_rank(group), dist.get_world_size(group)
    if not 0 <= rank < size or rank == mine:
        raise ValueError(
            f"{name} is rank {rank}, and this is rank {mine} of a group of {size}: give the number "
            f"of another rank, 0 to {size - 1}"
        )
    return rank


def _posted(work: dist.Work | None) -> dist.Work:
    assert work is not None  # torch returns none to a rank outside of the group
    return work
