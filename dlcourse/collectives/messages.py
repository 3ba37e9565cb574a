"""One message from a rank to another, of a tensor wherever it lives.

Over NCCL and for tensors in the CPU's memory these are torch's own ``isend`` and ``irecv``. Ranks
that share a GPU talk over Gloo, which sends from the CPU's memory only: there a tensor takes the
way over a copy in that memory. Not run on a GPU yet. A message meets only a tensor of its own size
and dtype (see p2p.py).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.p2p import tag_of


class Message:
    """A message under way. Keeps its memory alive until ``wait()``, which is called once."""

    def __init__(self, work: dist.Work, buffer: Tensor, tensor: Tensor | None = None) -> None:
        self.work, self.buffer, self.tensor = work, buffer, tensor

    def wait(self) -> None:
        """Until it has left, or has arrived in its tensor."""
        self.work.wait()
        if self.tensor is not None and self.buffer is not self.tensor:
            self.tensor.copy_(self.buffer)


def isend(
    tensor: Tensor, to: int, group: dist.ProcessGroup | None = None, *, tag: int | None = None
) -> Message:
    """Start to send. Do not change ``tensor`` before ``wait()``.

    Args:
        to: the other rank's number in the group.
        tag: only a receive with the same tag takes the message; by default that of tensors of
            this size and type. NCCL knows no tags.
    """
    buffer = tensor.cpu() if goes_over_cpu(tensor, group) else tensor
    tag = tag_of(buffer) if tag is None else tag
    work = dist.isend(buffer, group=group, group_dst=to, tag=tag)
    return Message(work, buffer)


def irecv(
    tensor: Tensor, source: int, group: dist.ProcessGroup | None = None, *, tag: int | None = None
) -> Message:
    """Start to receive into ``tensor``, which is there after ``wait()``."""
    over_cpu = goes_over_cpu(tensor, group)
    buffer = torch.empty_like(tensor, device="cpu") if over_cpu else tensor
    work = dist.irecv(
        buffer, group=group, group_src=source, tag=tag_of(buffer) if tag is None else tag
    )
    return Message(work, buffer, tensor)


def goes_over_cpu(tensor: Tensor, group: dist.ProcessGroup | None) -> bool:
    """Whether the group cannot send from this tensor's memory."""
    return tensor.device.type != "cpu" and dist.get_backend(group) == "gloo"
