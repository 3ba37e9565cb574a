"""ZeRO stage 2: as stage 1, and no two ranks keep the same gradients.

    backward   block 3 | send its gradients, block 2 | keep my part of 3, send 2, block 1 | ...

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", SC 2020, section 5.2.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from dlcourse.collectives.connection import Connection
from dlcourse.parallel.hooks import tensors_in
from dlcourse.parallel.replicas import refuse_own_gradients
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero_flat_parameters import FlatParameters


class ZeRO2(ZeRO1):
    """As stage 1, but a rank keeps the gradients of its shards alone.

    The whole gradient of a unit exists only from its backward to its reduce-scatter, which runs
    while backward goes on with the unit before it. So each backward must send: accumulating
    whole gradients over micro-batches would need the memory that this stage saves. All ranks must
    run the same number of backwards.
    """

    def __init__(self, module: nn.Module, **options: Any) -> None:
        refuse_own_gradients(module, "stages 2 and 3 keep none")
        super().__init__(module, **options)
        self.connection = Connection()  # of the last backward
        self.backward: weakref.ref | None = None  # the one under way; dead if torch has given it up
        self.missing: dict[FlatParameters, set[nn.Parameter]] = {}  # no gradient in it yet
        self.not_sent: list[FlatParameters] = []
        self.under_way: FlatParameters | None = None
        self.starts_anew = True  # the gradients of the last step have been used
        self.used: set[FlatParameters] = set()  # since then

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.end_cut_off_backward()
        outputs = super().forward(*args, **kwargs)
        for output in tensors_in(outputs):
            output.grad_fn.register_prehook(lambda _: self.begin_backward())
        return outputs

    def make_room(self) -> None:
        """There is none for all gradients: ``send`` makes it for one flat tensor's."""

    def begin_backward(self) -> None:
        """Once in each backward, whatever comes first in it."""
        self.end_cut_off_backward()
        if self.backward is not None:
            return
        self.connection = Connection()
        for flat in self.flats if self.starts_anew else ():
            flat.shard.grad = None
        self.used = {flat for flat in self.used if flat.shard.grad is not None}
        self.missing = {flat: set(flat.parameters) for flat in self.flats}
        self.not_sent = list(self.flats)
        end = self.finish_backward  # torch holds it until the end, or until an exception
        torch.autograd.Variable._execution_engine.queue_callback(end)
        self.backward = weakref.ref(end)

    def before_gradient(self, i: int, grad: Tensor) -> None:
        self.begin_backward()
        super().before_gradient(i, grad)

    def gradient_is_ready(self, parameter: nn.Parameter) -> None:
        flat = self.flat_of[parameter]
        self.used.add(flat)
        self.missing[flat].discard(parameter)
        # In a fixed order, whatever order they fill in: the ranks' messages must match
        while self.not_sent and not self.missing[self.not_sent[0]]:
            self.send(self.not_sent.pop(0))

    @torch.no_grad()
    def send(self, flat: FlatParameters) -> None:
        """Start a reduce-scatter; only one at a time, so that few whole gradients exist."""
        self.receive()
        flat.grad = torch.zeros_like(flat.full)  # zeros where this rank has no gradient
        for parameter, view in zip(flat.parameters, flat.views(flat.grad), strict=True):
            if parameter.grad is not None:
                torch.mul(parameter.grad.to_dense(), 1 / self.world_size, out=view)
        flat.drop_gradients()
        flat.start_reduce()
        self.under_way = flat

    @torch.no_grad()
    def receive(self, *, keep: bool = True) -> None:
        """Add this rank's part of what is under way to its shard's, and free the rest."""
        flat, self.under_way = self.under_way, None
        if flat is not None:
            mine = flat.finish_reduce()
            if keep and flat.shard.grad is None:
                flat.shard.grad = mine.clone()
            elif keep:
                flat.shard.grad += mine
            flat.grad = None

    def finish_backward(self) -> None:
        """Send what this backward had no gradient for, and wait for the last message."""
        if any(len(self.missing[flat]) < len(flat.parameters) for flat in self.flats):
            for flat in self.not_sent:
                self.send(flat)
            self.receive()
            self.starts_anew = False
        for flat in self.flats:
            # A layer inside and outside of a checkpoint: its second gradient is for the next send
            if flat.has_gradients():
                flat.watch()
        self.backward = None

    def end_cut_off_backward(self) -> None:
        """After an exception in backward: forget its gradients, send what others may wait for."""
        if self.backward is None or self.backward() is not None:
            return
        self.backward = None
        for flat in self.flats:
            flat.drop_gradients()
        if self.connection.was_cut():  # no rank waits
            self.under_way = None
            for flat in self.flats:
                flat.grad = None
            return
        self.receive(keep=False)
        for flat in self.not_sent:
            self.send(flat)
            self.receive(keep=False)

    def sync_gradients(self) -> None:
        self.end_cut_off_backward()
        for flat in self.flats:
            flat.drop_if_cleared()
        n = len(self.flats)
        flags = [f.has_gradients() for f in self.flats] + [f in self.used for f in self.flats]
        flags = self.in_any_rank(flags)
        for flat, is_left in zip(self.flats, flags[:n], strict=True):
            if is_left:
                self.send(flat)
                self.receive()
        for flat, is_used in zip(self.flats, flags[n:], strict=True):
            if any(flags) and not is_used:
                flat.shard.grad = None
        self.starts_anew, self.used = True, set()

    def is_unsynced(self) -> bool:
        return not self.starts_anew or super().is_unsynced()
