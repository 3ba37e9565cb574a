"""The host's memory, reached from the process that owns the device.

A copy runs in a thread of its own, one for each direction, so that the main thread goes on. On CUDA
each direction has a stream as well, and the host's memory is *pinned*: a page that may not move is
what the GPU copies from by itself, while it computes. From memory that is not pinned it cannot.

Adam's steps are taken in the main thread, in ``OptimizerOffload.step()``: only copies overlap with
backward. A host rank overlaps its steps, too. Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from dlcourse.formulas.states import offloaded_state_bytes
from dlcourse.machine import available_bytes
from dlcourse.training.sharding_offload.optimizer_offload import OffloadUnit, Wait
from dlcourse.words.units import human_bytes


def check_host(num_parameters: int, dtype: torch.dtype, memory: int) -> None:
    """Refuse a host with too little memory, before anything moves.

    Raises:
        ValueError: with both numbers, and what to change.
    """
    needed = offloaded_state_bytes(num_parameters, value_bytes=dtype.itemsize)
    if needed > memory:
        raise ValueError(
            f"the host has memory={human_bytes(memory)} and the offloaded state of "
            f"{num_parameters:,} parameters needs {human_bytes(needed)} there: leave the state on "
            "the device, divide it over ranks first (ZeRO), or give the host more memory"
        )


def master_of(row: Tensor) -> Tensor:
    """A copy in float32, or in the row's own type where that is wider."""
    return row.detach().to(torch.promote_types(row.dtype, torch.float32), copy=True)


def step_of_adam(adam: torch.optim.AdamW, master: nn.Parameter, buffer: Tensor) -> None:
    """Take a step of the master copy with the gradients in ``buffer``; leave its numbers there."""
    master.grad = buffer.to(master.dtype)
    adam.step()
    master.grad = None
    buffer.copy_(master.detach())


class LocalHost:
    """The host's memory, reached from the same process.

    Args:
        lr: learning rate of AdamW; setting the attribute changes it for the steps to come.
        memory: bytes that may be used; what the machine has available by default.
    """

    def __init__(self, *, lr: float = 1e-3, memory: int | None = None) -> None:
        self.adams: list[torch.optim.AdamW] = []
        self.lr = lr
        self.memory = available_bytes() if memory is None else memory
        self.out, self.back = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.arriving: dict[int, Future] = {}

    @property
    def lr(self) -> float:
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr = lr
        for adam in self.adams:
            adam.param_groups[0]["lr"] = lr

    def adopt(self, units: Sequence[OffloadUnit], *, parameters: bool = False) -> None:
        rows = [unit.row for unit in units]
        check_host(sum(r.numel() for r in rows), rows[0].dtype, self.memory)
        self.cuda = rows[0].is_cuda
        new_stream = torch.cuda.Stream if self.cuda else lambda _: None
        self.streams = [new_stream(rows[0].device) for _ in ("out", "back")]
        # One buffer for both directions: gradients come in, parameters go out
        self.buffers = [torch.empty_like(r, device="cpu", pin_memory=self.cuda) for r in rows]
        for buffer, row in zip(self.buffers, rows, strict=True):
            buffer.copy_(row)
        self.masters = [nn.Parameter(master_of(row).cpu()) for row in rows]
        self.adams = [torch.optim.AdamW([master], lr=self.lr) for master in self.masters]

    def push(self, unit: OffloadUnit, gradients: Tensor) -> Wait:
        copy = self._copy(self.out, self.streams[0], self.buffers[unit.index], gradients)
        self.arriving[unit.index] = copy
        return copy.result

    def update(self, unit: OffloadUnit) -> None:
        i = unit.index
        self.arriving.pop(i).result()
        step_of_adam(self.adams[i], self.masters[i], self.buffers[i])

    def forget(self) -> None:
        """Gradients that have arrived make way for the parameters again."""
        for i, copy in self.arriving.items():
            copy.result()
            self.buffers[i].copy_(self.masters[i].detach())
        self.arriving.clear()

    def pull(self, unit: OffloadUnit) -> Wait:
        if unit.index in self.arriving:  # what lies in the buffer is its gradient
            raise RuntimeError(
                f"unit {unit.index} was used after its gradients had left: call step() before the "
                "next forward, or zero_grad() of the offload to forget the step"
            )
        return self._copy(self.back, self.streams[1], unit.row, self.buffers[unit.index]).result

    def _copy(self, thread: ThreadPoolExecutor, stream: Any, to: Tensor, source: Tensor) -> Future:
        """In another thread, so that this one goes on. On CUDA after what it has queued so far."""
        ready = torch.cuda.current_stream(stream.device).record_event() if stream else None

        @torch.no_grad()
        def work() -> None:
            if stream is None:
                to.copy_(source)
                return
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                to.copy_(source, non_blocking=True)  # true overlap needs pinned memory
            stream.synchronize()

        return thread.submit(work)
