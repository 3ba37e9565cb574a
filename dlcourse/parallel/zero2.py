"""ZeRO stage 2: as stage 1, and no two ranks keep the same gradients.

    backward   block 3 | send its gradients, block 2 | keep my part of 3, send 2, block 1 | ...

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", SC 2020, section 5.2.
"""

from __future__ import annotations

import weakref

import torch
from torch import nn

from dlcourse.parallel.flat import FlatParameters
from dlcourse.parallel.zero import ZeRO1


class ZeRO2(ZeRO1):
    """As stage 1, but a rank keeps the gradients of its shards alone.

    The whole gradient of a unit exists only from its backward to its reduce-scatter, which runs
    while backward goes on with the unit before it. So each backward must send: accumulating
    whole gradients over micro-batches would need the memory that this stage saves.
    """

    def __init__(self, module: nn.Module, **options) -> None:
        super().__init__(module, **options)
        self.num_missing = {flat: len(flat.parameters) for flat in self.flats}
        self.not_sent = list(self.flats)
        self.under_way: FlatParameters | None = None
        self.flat_of = {p: flat for flat in self.flats for p in flat.parameters}
        # Torch hides hooks from the garbage collector: one that holds self would never be freed
        ready = weakref.WeakMethod(self.gradient_is_ready)
        for parameter in self.flat_of:
            parameter.register_post_accumulate_grad_hook(lambda p: ready() and ready()(p))

    def forward(self, *args, **kwargs):
        self.finish_backward()  # of the micro-batch before, if there was one
        return super().forward(*args, **kwargs)

    def start_gradients(self) -> None:
        for flat in self.flats:
            flat.shard.grad = None

    def gradient_is_ready(self, parameter: nn.Parameter) -> None:
        """Backward calls this for each parameter, last layers first."""
        self.num_missing[self.flat_of[parameter]] -= 1
        # In a fixed order, whatever order they fill in: the ranks' messages must match
        while self.not_sent and self.num_missing[self.not_sent[0]] == 0:
            self.send(self.not_sent.pop(0))

    @torch.no_grad()
    def send(self, flat: FlatParameters) -> None:
        """Start a reduce-scatter; only one at a time, so that few whole gradients exist."""
        self.receive()
        flat.grad = torch.zeros_like(flat.full)  # zeros where this rank has no gradient
        for parameter, view in zip(flat.parameters, flat.views(flat.grad), strict=True):
            if parameter.grad is not None:
                torch.mul(parameter.grad, 1 / self.world_size, out=view)
                parameter.grad = None
        flat.start_reduce()
        self.under_way = flat

    @torch.no_grad()
    def receive(self) -> None:
        """Keep this rank's part of what is under way, and free the rest."""
        flat, self.under_way = self.under_way, None
        if flat is not None:
            mine = flat.finish_reduce()
            if flat.shard.grad is None:
                flat.shard.grad = mine.clone()
            else:
                flat.shard.grad += mine
            flat.grad = None

    def finish_backward(self) -> None:
        """Send what this backward had no gradient for, and wait for the last message."""
        if any(self.num_missing[flat] < len(flat.parameters) for flat in self.flats):
            for flat in self.not_sent:
                self.send(flat)
            self.receive()
            self.num_missing = {flat: len(flat.parameters) for flat in self.flats}
            self.not_sent = list(self.flats)

    def sync_gradients(self) -> None:
        self.finish_backward()
        self.starts_anew = True
