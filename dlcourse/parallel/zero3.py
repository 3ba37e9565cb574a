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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version, register_multi_grad_hook
from torch.utils._pytree import tree_leaves

from dlcourse.parallel.hooks import in_backward, tensors_in, weakly
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3_state import (
    GatheredState,
    UncopyableHook,
    refuse_gradients,
    refuse_second_derivative,
    refuse_uncalled_units,
    refuse_written,
)
from dlcourse.parallel.zero_flat_parameters import FlatParameters


class ShardedUnit:
    """Parameters that come and go together: those of a block, or what the blocks leave over."""

    def __init__(self, flats: list[FlatParameters]) -> None:
        self.flats = flats
        self.is_here = True  # gathered, or on the way
        self.is_ready = False  # gathered
        self.user: nn.Module | None = None  # whose forward has asked for them
        self.call = object()  # that forward; a unit may be called several times
        self.backwards: set[object] = set()  # calls whose backward is under way
        for flat in flats:
            flat.shard.data = flat.shard.detach().clone()  # a memory of its own
            wrong = float("nan") if flat.full.is_floating_point() else 0  # frozen int8 weights
            flat.nothing = flat.full.new_full((), wrong)
        self.free()

    def start(self) -> None:
        """Ask all ranks for their shards."""
        if not self.is_here:
            for flat in self.flats:
                flat.full.untyped_storage().resize_(flat.nbytes)
                flat.start_gather()
            self.is_here = True

    def wait(self) -> bool:
        """Have them here, and let the parameters point to them. Whether they were not before."""
        self.start()
        if self.is_ready:
            return False
        for flat in self.flats:
            refuse_written(flat)
            flat.finish_gather()
            for parameter, view in zip(flat.parameters, flat.views(flat.full), strict=True):
                parameter.data = view
        self.is_ready = True
        return True

    def free(self) -> None:
        """Give the memory back. Who reads a parameter now reads NaN, not somebody else's memory."""
        for flat in self.flats if self.is_here else ():
            with suppress(RuntimeError):  # what nobody needs any more may have failed
                flat.finish_gather()
            for parameter in flat.parameters:
                parameter.data = flat.nothing.expand(parameter.shape)
            flat.full.untyped_storage().resize_(0)
        self.is_here = self.is_ready = False
        self.user = None
        self.backwards.clear()

    def end_backward(self, call: object, _: Sequence) -> None:
        """Backward has gone through all of a call; free, unless it is still in another one."""
        self.backwards.discard(call)
        if not self.backwards:
            self.free()


class ZeRO3(GatheredState, ZeRO2):
    """Every rank keeps its shards of parameters, gradients and optimizer state, and nothing else.

    All ranks must run the same modules in the same order, in evaluation as well: every forward is
    a collective, and so are ``state_dict`` and ``load_state_dict``. Between forward and backward,
    and outside ``gathered()``, parameters read as NaN. A module's parameters are here while it, or
    the unit that it is in, is called: a term of the loss over ``parameters()`` would read NaN.

    Args:
        module, process_group, dtype, units: as for stages 1 and 2.
        prefetch: gather the next unit while this one computes.

    Raises:
        ValueError: as in stage 1, or a unit with parameters of its own that has no forward.
    """

    def __init__(self, module: nn.Module, *, prefetch: bool = True, **options: Any) -> None:
        refuse_uncalled_units(options.get("units"))
        super().__init__(module, **options)
        self.prefetch, self.is_gathered = prefetch, False
        units = {m: ShardedUnit(flats) for m, flats in self.flats_of.items()}
        root, *blocks = units.values()
        forward, backward = [root, *blocks], [root, *reversed(blocks)]
        self.next_in_forward = dict(pairwise(forward))
        self.next_in_backward = dict(pairwise(backward))
        self.units = forward
        unit_of = {p: unit for unit in forward for flat in unit.flats for p in flat.parameters}
        for m in module.modules():
            # Whoever has parameters asks for them, be it called by its unit or past it
            owned = {unit_of[p]: None for p in m.parameters(recurse=False)}
            for unit in {units[m]: None, **owned} if m in units else owned:
                self.watch(m, unit)
            m.register_state_dict_pre_hook(UncopyableHook(self.refuse_unless_gathered))
            m.register_load_state_dict_pre_hook(UncopyableHook(self.refuse_unless_gathered))

    def watch(self, module: nn.Module, unit: ShardedUnit) -> None:
        """Have the unit here while the module runs forward, and backward."""
        before = UncopyableHook(lambda m, *inputs: self.before_forward(m, unit, inputs))
        module.register_forward_pre_hook(before, with_kwargs=True)
        after = UncopyableHook(lambda m, _, outputs: self.after_forward(m, unit, outputs))
        module.register_forward_hook(after)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_gathered:
            refuse_gradients()
            return self.module(*args, **kwargs)
        if not in_backward():
            self.free()  # what a forward that was cut off has left
        return super().forward(*args, **kwargs)

    def before_forward(self, module: nn.Module, unit: ShardedUnit, inputs: tuple) -> None:
        if self.is_gathered:
            return
        # In backward, a checkpoint runs forward again
        self.use(unit, self.next_in_backward if in_backward() else self.next_in_forward)
        if unit.user is None:
            unit.user, unit.call = module, object()
            leaves = [x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.requires_grad]
            if torch.is_grad_enabled():  # their gradients are the last that backward makes
                end = partial(unit.end_backward, unit.call)
                if len(leaves) == 1:
                    leaves[0].register_hook(end)
                elif leaves:  # a cycle: each round of the garbage collector finds one unit
                    register_multi_grad_hook(leaves, end)

    def after_forward(self, module: nn.Module, unit: ShardedUnit, outputs: object) -> None:
        if self.is_gathered:
            return
        if unit.user is module:
            unit.user = None
            if not in_backward():
                unit.free()
        kept = {name: x for name, x in vars(module).items() if not name.startswith("_")}
        for output in tensors_in((outputs, kept)):
            # Not a hook of the tensor: the unit after this one must be free by then
            # And weakly: a layer that keeps an output (a router's weights) would keep the model
            begin = weakly(self.begin_unit)
            output.grad_fn.register_prehook(partial(begin, unit, unit.call))

    def begin_unit(self, unit: ShardedUnit, call: object, _: tuple) -> None:
        """Backward has come to a module of this unit."""
        refuse_second_derivative()
        self.begin_backward()
        unit.backwards.add(call)
        self.use(unit, self.next_in_backward)

    def use(self, unit: ShardedUnit, following: dict[ShardedUnit, ShardedUnit]) -> None:
        """Have the unit's parameters here, and the next one's on the way."""
        if unit.wait() and self.prefetch and unit in following:
            following[unit].start()

    def finish_backward(self) -> None:
        super().finish_backward()
        self.free()

    def free(self) -> None:
        """Nothing is here between steps."""
        for unit in self.units:
            unit.free()

    def before_step(self) -> None:
        super().before_step()
        self.free()  # what somebody has computed with since is old from now on

    def sync_parameters(self) -> None:
        """Nothing to send: the next forward gathers the new shards."""
        increment_version(self.flat_of)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All parameters at once, in all ranks, to look at, to compute with, and to change.

        What is written to them goes into the shards at the end.

        Raises:
            ValueError: at the end, in all ranks, where ranks have written different numbers.
        """
        if self.is_gathered:
            yield
            return
        for unit in self.units:
            unit.wait()
            copies = {p: p.detach().clone() for flat in unit.flats for p in flat.parameters}
            unit.free()  # a copy may be kept, or be given to NumPy: that memory cannot be freed
            for parameter, copy in copies.items():
                parameter.data = copy
        self.is_gathered = True
        try:
            yield
            self.write_shards()
        finally:
            self.is_gathered = False
            for unit in self.units:
                unit.is_here = True
                unit.free()
