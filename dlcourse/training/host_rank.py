"""A rank as the host: what is offloaded lives in another process, so its memory can be told apart.

On a machine without a GPU the device's memory *is* the host's. Between two ranks it is not: one
computes, the other keeps state and takes Adam's steps, and each has a ledger of its own. Messages
stand for the copies over PCIe.

    OptimizerOffload(model, RankHost(1))                        # in rank 0
    serve(0, steps=3)                                           # in rank 1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.collectives.messages import Message, irecv, isend
from dlcourse.measure import mark_step
from dlcourse.training.local_host import available_bytes, check_host, step_of_adam
from dlcourse.training.offload import Unit, Wait


def waiting(message: Message) -> Wait:
    """A wait that may be called again: Gloo's own may not."""
    open_ = [message]

    def wait() -> None:
        if open_:
            open_.pop().wait()

    return wait


class RankHost:
    """The device's end of the line: a `Host` whose work another rank does.

    Args:
        rank: where ``serve`` runs.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def adopt(self, units: Sequence[Unit]) -> None:
        rows = [unit.row for unit in units]
        sizes, dtype = [row.numel() for row in rows], rows[0].dtype
        dist.send_object_list([sizes, dtype], self.rank)
        memory = [0]
        dist.recv_object_list(memory, self.rank)
        check_host(sum(sizes), dtype, memory[0])  # fails in both ranks, before anything moves
        for row in rows:
            isend(row, self.rank).wait()

    def push(self, unit: Unit, gradients: Tensor) -> Wait:
        return waiting(isend(gradients, self.rank))

    def update(self, unit: Unit) -> None:
        """The other rank does it when the gradients arrive."""

    def pull(self, unit: Unit) -> Wait:
        return waiting(irecv(unit.row, self.rank))

    def forget(self) -> None:
        raise RuntimeError(
            f"a step was cut off, and rank {self.rank}, the host, still waits for the rest of it: "
            "make the model and both ends of the offload anew, or take LocalHost"
        )


def serve(
    device: int,
    *,
    steps: int,
    parameters: bool = False,
    lr: float = 1e-3,
    memory: int | None = None,
) -> None:
    """Be the host of rank ``device`` for some steps. Messages come in the order of its backward.

    Args:
        parameters: for ``ParameterOffload``: blocks ask for theirs in forward and in backward.
        lr: learning rate of AdamW.
        memory: bytes that may be used; what the machine has available by default.
    """
    memory = available_bytes() if memory is None else memory
    asked: list = [None, None]
    dist.recv_object_list(asked, device)
    dist.send_object_list([memory], device)
    sizes, dtype = asked
    check_host(sum(sizes), dtype, memory)
    home = "cuda" if dist.get_backend() == "nccl" else "cpu"  # NCCL knows no other memory
    buffers = [torch.empty(size, dtype=dtype, device=home) for size in sizes]
    for buffer in buffers:
        irecv(buffer, device).wait()
    masters = [nn.Parameter(buffer.to(torch.float32, copy=True)) for buffer in buffers]
    adams = [torch.optim.AdamW([master], lr=lr) for master in masters]

    def send(i: int) -> Wait:
        return waiting(isend(buffers[i], device))

    blocks = range(1, len(sizes))
    for _ in range(steps):
        sent: dict[int, Wait] = {}
        if parameters:
            for wait in [send(i) for i in blocks]:  # forward
                wait()
            sent = {i: send(i) for i in reversed(blocks)}  # backward
        for i in reversed(range(len(sizes))):
            if i in sent:
                sent[i]()
            irecv(buffers[i], device).wait()
            step_of_adam(adams[i], masters[i], buffers[i])
            if i == 0 or not parameters:
                sent[i] = send(i)
        for wait in sent.values():
            wait()
        mark_step()
