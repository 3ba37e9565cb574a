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

from dlcourse.collectives.p2p import irecv, isend
from dlcourse.measure import mark_step
from dlcourse.training.sharding_offload.local_host import (
    available_bytes,
    check_host,
    master_of,
    step_of_adam,
)
from dlcourse.training.sharding_offload.optimizer_offload import OffloadUnit, Wait


class RankHost:
    """The device's end of the line: a `HostMemory` whose work another rank does.

    Args:
        rank: where ``serve`` runs.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def adopt(self, units: Sequence[OffloadUnit], *, parameters: bool = False) -> None:
        rows = [unit.row for unit in units]
        sizes, dtype = [row.numel() for row in rows], rows[0].dtype
        dist.send_object_list([sizes, dtype, parameters], self.rank)
        host: list = [0, False]
        dist.recv_object_list(host, self.rank)
        check_modes(parameters, host[1])
        check_host(sum(sizes), dtype, host[0])  # fails in both ranks, before anything moves
        for row in rows:
            isend(row, self.rank).wait()
        back = [*reversed(range(len(rows)))]
        self.order = {"push": back, "pull": back}
        if parameters:
            self.order["pull"] = [*range(1, len(rows)), *back]
        self.begin()

    def begin(self) -> None:
        self.expected = {what: [*order] for what, order in self.order.items()}

    def next_is(self, what: str, unit: OffloadUnit) -> None:
        """The host rank sends and receives rows in one order: another one would mix them up."""
        if self.expected[what][:1] != [unit.index]:
            raise RuntimeError(
                f"{what} of unit {unit.index}, and rank {self.rank} is at {self.expected}: it "
                "serves whole steps alone, forward, backward and step(), through the blocks in "
                "their order; evaluate with a LocalHost, or after the last step with new ranks"
            )
        self.expected[what].pop(0)
        if not any(self.expected.values()):
            self.begin()

    def push(self, unit: OffloadUnit, gradients: Tensor) -> Wait:
        self.next_is("push", unit)
        return isend(gradients, self.rank).wait

    def update(self, unit: OffloadUnit) -> None:
        """The other rank does it when the gradients arrive."""

    def pull(self, unit: OffloadUnit) -> Wait:
        self.next_is("pull", unit)
        return irecv(unit.row, self.rank).wait

    def forget(self) -> None:
        if self.expected != self.order:
            raise RuntimeError(
                f"rank {self.rank} is in the middle of a step, and has updated what has reached "
                "it: begin again with new ranks, from a checkpoint"
            )


def check_modes(device: bool, host: bool) -> None:
    if device != host:
        raise ValueError(
            f"serve(parameters={host}) and {'Parameter' if device else 'Optimizer'}Offload on the "
            f"device: give serve(parameters={device})"
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
    asked: list = [None, None, None]
    dist.recv_object_list(asked, device)
    dist.send_object_list([memory, parameters], device)
    sizes, dtype, wanted = asked
    check_modes(wanted, parameters)
    check_host(sum(sizes), dtype, memory)
    home = "cuda" if dist.get_backend() == "nccl" else "cpu"  # NCCL knows no other memory
    buffers = [torch.empty(size, dtype=dtype, device=home) for size in sizes]
    for buffer in buffers:
        irecv(buffer, device).wait()
    masters = [nn.Parameter(master_of(buffer)) for buffer in buffers]
    adams = [torch.optim.AdamW([master], lr=lr) for master in masters]

    def send(i: int) -> Wait:
        return isend(buffers[i], device).wait

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
