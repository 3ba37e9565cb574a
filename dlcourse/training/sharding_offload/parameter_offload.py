"""Parameters on the host as well: a block's come just before it computes, and go again.

    forward    fetch block 1 | compute 1, fetch 2 | drop 1, compute 2, fetch 3 | ...
    backward   ... | compute 2, fetch 1 | drop 2, send its gradients, compute 1 | ...

A dropped row keeps its shape and has no memory, as in stage 3 of ZeRO: its storage is resized to
nothing, and what autograd has saved finds the numbers there again once they have been fetched.
That stage gathers from the other ranks, this class from the host. Who reads a parameter meanwhile
reads NaN.

Source: Rajbhandari et al., "ZeRO-Infinity: Breaking the GPU Memory Wall for Extreme Scale Deep
Learning", SC 2021.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from dlcourse.models.gpt import GPT
from dlcourse.training.sharding_offload.optimizer_offload import (
    HostMemory,
    OffloadUnit,
    OptimizerOffload,
    Wait,
)


class ParameterOffload(OptimizerOffload):
    """As `OptimizerOffload`, and the blocks' parameters stay on the host between their uses.

    The rest of the model, unit 0, stays on the device. Every forward with gradients needs its
    backward and ``step()``. Gradients leave as soon as they are made. With a `RankHost` every
    forward does: the host rank sends what a step needs, and no more.

    Args:
        overlap: fetch the next block while this one computes; without, each move is waited for.
    """

    parameters_too = True

    def __init__(self, model: GPT, host: HostMemory, *, overlap: bool = True) -> None:
        super().__init__(model, host, overlap=True)  # of gradients: no room to keep them
        self.overlap = overlap
        self.coming: dict[OffloadUnit, Wait] = {}
        self.nothing = self.units[0].row.new_full((), float("nan"))
        self.all_here = False
        for block, unit in zip(model.blocks, self.units[1:], strict=True):
            self.drop(unit)
            block.register_forward_pre_hook(lambda _, args, unit=unit: self.enter(unit, args))
            block.register_forward_hook(lambda _, args, y, unit=unit: self.leave(unit, y))
        for module in (model, *model.blocks):
            module.register_state_dict_pre_hook(self.refuse_reading)
            module.register_load_state_dict_pre_hook(self.refuse)
            module.__deepcopy__ = self.refuse

    def begin(self) -> None:
        """Before forward: blocks that a cut off forward or backward has left here go, too."""
        super().begin()
        if any(unit.is_here for unit in self.units[1:]):
            self.host.forget()
            for unit in self.units[1:]:
                if unit in self.coming:
                    self.coming.pop(unit)()
                self.drop(unit)

    def enter(self, unit: OffloadUnit, args: tuple[Tensor, ...]) -> None:
        """Before forward of a block, which has one input: the stream."""
        self.use(unit, unit.index + 1)
        if args[0].requires_grad:  # its gradient is the last that the block's backward makes
            args[0].register_hook(lambda _: self.drop(unit))

    def leave(self, unit: OffloadUnit, y: Tensor) -> None:
        if not isinstance(y, Tensor):
            raise ValueError(
                f"block {unit.index} returns a {type(y).__name__}, not one tensor: backward would "
                "not know when to fetch it; use OptimizerOffload"
            )
        self.drop(unit)
        if y.grad_fn is not None:
            # Not a hook of the tensor: the block after this one must have been dropped by then
            y.grad_fn.register_prehook(lambda _: self.use(unit, unit.index - 1))

    def use(self, unit: OffloadUnit, following: int) -> None:
        """Have the unit's parameters here and, with overlap, those of the next one on their way."""
        self.start(unit)
        if unit in self.coming:  # else it is here: something has failed before it was dropped
            self.coming.pop(unit)()
        unit.show()
        if self.overlap and 1 <= following < len(self.units):
            self.start(self.units[following])

    def start(self, unit: OffloadUnit) -> None:
        if not unit.is_here:
            unit.row.untyped_storage().resize_(unit.nbytes)
            self.coming[unit] = self.fetch(unit)  # which a host may refuse
            unit.is_here = True

    def drop(self, unit: OffloadUnit) -> None:
        if self.all_here:
            return
        if unit in self.coming:  # a copy into memory that is gone would be written elsewhere
            self.coming.pop(unit)()
        for p in unit.parameters:
            p.data = self.nothing.expand(p.shape)
        unit.views = [p.detach() for p in unit.parameters]
        unit.row.untyped_storage().resize_(0)
        unit.is_here = False

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All parameters on the device, to save or to copy. Copy what is to stay: they go again."""
        for unit in self.units[1:]:
            self.use(unit, 0)
        self.all_here = True
        try:
            yield
        finally:
            self.all_here = False
            for unit in self.units[1:]:
                self.drop(unit)

    def refuse_reading(self, *_: Any) -> None:
        if not self.all_here:
            raise ValueError(
                "the blocks' parameters are on the host: read the state_dict, and save or copy it, "
                "inside `with offload.gathered():`"
            )

    def refuse(self, *_: Any) -> None:
        raise ValueError(
            "the blocks' parameters are on the host, and would be lost here: load weights into a "
            "model, and copy it, before you build the offload"
        )

    def push(self, unit: OffloadUnit) -> None:
        super().push(unit)
        if not self.overlap:
            self.leaving[unit]()
