"""ZeRO stage 3: a layer's parameters come together just before they are used, and go again.

    forward    gather block 0 | compute 0, gather 1 | free 0, compute 1, gather 2 | free 1, ...
    backward   ... | compute 1, gather 0 | free 1, send its gradients, compute 0 | ...

So a rank holds its shards, and for a moment the one or two units at work. The price: parameters
travel twice a step (once for forward, once for backward) and gradients once, where stages 1 and 2
move each once.

A freed tensor keeps its shape and has no memory: its *storage* is resized to nothing. Everything
that autograd has saved for backward points to that storage, and finds the numbers there again once
the storage has been refilled. FSDP frees parameters in the same way.

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", SC 2020; Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data
Parallel", VLDB 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_leaves

from dlcourse.parallel.flat import FlatParameters
from dlcourse.parallel.zero2 import ZeRO2


class Unit:
    """Parameters that come and go together: those of a block, or what the blocks leave over."""

    def __init__(self, flats: list[FlatParameters]) -> None:
        self.flats = flats
        self.is_here = True  # gathered, or on the way
        for flat in flats:
            flat.shard.data = flat.shard.detach().clone()  # a memory of its own
            flat.nbytes = flat.full.nbytes
            flat.nothing = flat.full.new_full((), float("nan"))
        self.free()

    def start(self) -> None:
        """Ask all ranks for their shards."""
        if not self.is_here:
            for flat in self.flats:
                flat.full.untyped_storage().resize_(flat.nbytes)
                flat.start_gather()
            self.is_here = True

    def wait(self) -> None:
        """Wait until they have come, and let the parameters point to them."""
        self.start()
        for flat in self.flats:
            if flat.gathering is not None:
                flat.finish_gather()
                for parameter, view in zip(flat.parameters, flat.views(flat.full), strict=True):
                    parameter.data = view

    def free(self) -> None:
        """Give the memory back. Who reads a parameter now reads NaN, not somebody else's memory."""
        for flat in self.flats if self.is_here else ():
            flat.finish_gather()
            for parameter in flat.parameters:
                parameter.data = flat.nothing.expand(parameter.shape)
            flat.full.untyped_storage().resize_(0)
        self.is_here = False


class ZeRO3(ZeRO2):
    """Every rank keeps its shards of parameters, gradients and optimizer state, and nothing else.

    All ranks must run the same modules in the same order, in evaluation as well: every forward is
    a collective. Between forward and backward, and outside ``gathered()``, parameters read as NaN.

    Args:
        module, process_group, dtype, units: as for stages 1 and 2. A model that is in a ``ZeRO3``
            already cannot go into another one.
        prefetch: gather the next unit while this one computes.
    """

    def __init__(self, module: nn.Module, *, prefetch: bool = True, **options) -> None:
        if any(getattr(m, "_is_zero3_unit", False) for m in module.modules()):
            raise ValueError("module is in a ZeRO3 already: build the model anew for another one")
        super().__init__(module, **options)
        self.prefetch = prefetch
        units = {m: Unit(flats) for m, flats in self.flats_of.items()}
        root, *blocks = units.values()
        forward, backward = [root, *blocks], [root, *reversed(blocks)]
        self.next_in_forward = dict(pairwise(forward))
        self.next_in_backward = dict(pairwise(backward))
        self.units = forward
        for m, unit in units.items():
            m._is_zero3_unit = True
            m.register_forward_pre_hook(lambda _, args, unit=unit: self.before_forward(unit, args))
            m.register_forward_hook(lambda _, args, out, unit=unit: self.after_forward(unit, out))

    def before_forward(self, unit: Unit, args: tuple) -> None:
        self.use(unit, self.next_in_forward)
        inputs = [x for x in tree_leaves(args) if isinstance(x, Tensor) and x.requires_grad]
        if inputs and torch.is_grad_enabled():  # their gradients are the last that backward makes
            register_multi_grad_hook(inputs, lambda _: unit.free())

    def after_forward(self, unit: Unit, outputs: object) -> None:
        unit.free()
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor) and output.grad_fn is not None:
                # Not a hook of the tensor: the unit after this one must be free by then
                output.grad_fn.register_prehook(lambda _: self.use(unit, self.next_in_backward))

    def use(self, unit: Unit, following: dict[Unit, Unit]) -> None:
        """Have the unit's parameters here, and the next one's on the way."""
        unit.wait()
        if self.prefetch and unit in following:
            following[unit].start()

    def finish_backward(self) -> None:
        super().finish_backward()
        for unit in self.units:
            unit.free()

    def sync_parameters(self) -> None:
        """Nothing to do: the next forward gathers the new shards."""

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All parameters at once, to look at, in all ranks. What is written to them is lost."""
        for unit in self.units:
            unit.wait()
            copies = {p: p.detach().clone() for flat in unit.flats for p in flat.parameters}
            unit.free()  # a copy may be kept, or be given to NumPy: that memory cannot be freed
            for parameter, copy in copies.items():
                parameter.data = copy
        try:
            yield
        finally:
            for unit in self.units:
                unit.wait()
                unit.free()
