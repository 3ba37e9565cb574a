"""Offload: what a device needs only for a moment lives in another memory, the host's.

`OptimizerOffload`: Adam's state and a float32 master copy live in the host, which also takes the
step. For each unit (a block; what the blocks leave over) gradients go out and parameters come back.

    without overlap    backward ......... | out 3, update, back | out 2, update, back | ...
    with overlap       backward 3 | backward 2, out 3 | backward 1, out 2, update 3 | ...

`ParameterOffload` (in ``parameter_offload.py``) moves blocks' parameters there as well.

The host is the memory of this process, see ``local_host.py``, or a rank, see ``rank_as_host.py``.

Source: Ren et al., "ZeRO-Offload: Democratizing Billion-Scale Model Training", USENIX ATC 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn

from dlcourse.collectives.buffers import views_like
from dlcourse.models.gpt import GPT
from dlcourse.parallel.hooks import weakly
from dlcourse.parallel.replicas import AVERAGED, SENT_EARLY

Wait = Callable[[], Any]  # returns once the copy has arrived
_OFFLOADED: WeakSet[nn.Module] = WeakSet()


class OffloadUnit:
    """Parameters that travel together. ``row`` holds them one behind the other; they are views."""

    def __init__(self, index: int, parameters: Sequence[nn.Parameter]) -> None:
        self.index, self.parameters = index, list(parameters)
        self.row = torch.cat([p.detach().flatten() for p in self.parameters])
        self.nbytes, self.is_here = self.row.nbytes, True
        self.show()
        self.versions = [p._version for p in self.parameters]  # torch counts in-place changes

    def show(self) -> None:
        """Let the parameters point into the row, as it is now."""
        self.views = views_like(self.row, self.parameters)
        for p, view in zip(self.parameters, self.views, strict=True):
            p.data = view

    def check(self, *, gradients: bool) -> None:
        """An error for what step() would lose."""
        for p, view, version in zip(self.parameters, self.views, self.versions, strict=True):
            if p._version != version or not p.is_set_to(view):
                raise ValueError(
                    f"a parameter of unit {self.index} was changed or moved after the offload had "
                    "copied it to the host, whose numbers would replace it: load weights, and "
                    "choose type and device, before you build the offload"
                )
        if gradients and (unused := sum(p.grad is None for p in self.parameters)):
            raise ValueError(
                f"{unused} of {len(self.parameters)} parameters of unit {self.index} have no "
                "gradient: call backward() before step(), and use every parameter in forward"
            )

    def take_gradients(self) -> Tensor:
        """The gradients as one row; the parameters have none any more."""
        row = torch.cat([p.grad.flatten() for p in self.parameters])
        for p in self.parameters:
            p.grad = None
        return row


class HostMemory(Protocol):
    """Keeps a master copy and Adam's state of each unit."""

    def adopt(self, units: Sequence[OffloadUnit], *, parameters: bool = False) -> None:
        """Copy the units' parameters; ValueError if there is too little memory.

        ``parameters``: blocks will pull theirs in forward and in backward.
        """

    def push(self, unit: OffloadUnit, gradients: Tensor) -> Wait:
        """Begin to bring a unit's gradients over: ``gradients.nbytes``."""

    def update(self, unit: OffloadUnit) -> None:
        """One step of Adam for this unit, when its gradients are there."""

    def pull(self, unit: OffloadUnit) -> Wait:
        """Begin to bring its parameters into ``unit.row``: ``unit.nbytes``."""

    def forget(self) -> None:
        """Gradients that have come since the last step are of no use; RuntimeError if they were."""


class OptimizerOffload:
    """Trains ``model`` with AdamW on a host. Call ``step()`` after each ``backward()``.

    A step that was left in the middle, by an exception say, is forgotten with ``zero_grad()``.

    Args:
        model: its ``blocks`` are units, the rest of it is unit 0. On its device already.
        host: takes over master copies and state.
        overlap: gradients leave as soon as backward has made a unit's, so they cannot be clipped
            or looked at; without, in ``step()``, and each move is waited for.

    Attributes:
        out_bytes, back_bytes: moved to the host and back since the beginning.

    Raises:
        ValueError: a parameter is frozen, shared by blocks, or of another type than the rest of
            its unit; the model is in an offload already; or the host has too little memory.
    """

    parameters_too = False

    def __init__(self, model: GPT, host: HostMemory, *, overlap: bool = True) -> None:
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        if frozen:
            raise ValueError(
                f"{len(frozen)} parameters do not require a gradient, {frozen[0]} first: a unit "
                "travels as one row, with a gradient for all of it; train them, or leave the "
                "offload out"
            )
        synced = any(m in AVERAGED or hasattr(m, "sync_gradients") for m in model.modules())
        if overlap and synced:
            raise ValueError(
                "overlap=True with a model whose gradients are synced after backward: they would "
                "leave before that; give overlap=False"
            )
        if overlap:
            SENT_EARLY.add(model)
        if model in _OFFLOADED:
            raise ValueError("model is in an offload already: build it anew for another one")
        self.host, self.overlap = host, overlap
        self.out_bytes = self.back_bytes = 0
        in_blocks = {p for p in model.blocks.parameters()}
        rest = [p for p in model.parameters() if p not in in_blocks]
        groups = [rest, *(list(block.parameters()) for block in model.blocks)]
        check_groups(groups)
        self.units = [OffloadUnit(i, parameters) for i, parameters in enumerate(groups)]
        host.adopt(self.units, parameters=self.parameters_too)
        _OFFLOADED.add(model)
        self.leaving: dict[OffloadUnit, Wait] = {}
        self.missing = {unit: set(unit.parameters) for unit in self.units}
        self.unit_of = {p: unit for unit in self.units for p in unit.parameters}
        for p in self.unit_of if overlap else ():
            p.register_post_accumulate_grad_hook(weakly(self.has_gradient))

    def has_gradient(self, p: nn.Parameter) -> None:
        """autograd has made a gradient of a unit."""
        unit = self.unit_of[p]
        if p not in self.missing[unit]:
            raise ValueError(
                "a second backward before step(): the first one's gradients have left already; "
                "give overlap=False to accumulate gradients, or call zero_grad() of the offload to "
                "forget a step that was left in the middle"
            )
        self.missing[unit].remove(p)
        if not self.missing[unit]:
            self.push(unit)

    def zero_grad(self) -> None:
        """Forget all gradients, also those that have left.

        Raises:
            RuntimeError: the host is a rank, and has taken its part of the step already.
        """
        for wait in self.leaving.values():
            wait()
        self.host.forget()
        self.begin()

    def begin(self) -> None:
        """There is no gradient."""
        self.leaving.clear()
        self.missing = {unit: set(unit.parameters) for unit in self.units}
        for unit in self.units:
            for p in unit.parameters:
                p.grad = None

    def push(self, unit: OffloadUnit) -> None:
        gradients = unit.take_gradients()
        self.out_bytes += gradients.nbytes
        self.leaving[unit] = self.host.push(unit, gradients)

    def step(self) -> None:
        """When it returns, all parameters are the new ones.

        Raises:
            ValueError: a parameter has no gradient, or was changed by somebody else; before
                anything is updated.
        """
        for unit in reversed(self.units):
            unit.check(gradients=unit not in self.leaving)
        coming = []
        for unit in reversed(self.units):  # as backward has made them
            if unit not in self.leaving:
                self.push(unit)
            if not self.overlap:
                self.leaving.pop(unit)()
            self.host.update(unit)
            if unit.is_here:
                coming.append(self.fetch(unit))
            if coming and not self.overlap:
                coming.pop()()
        for wait in [*self.leaving.values(), *coming]:
            wait()
        self.begin()
        for unit in self.units:  # backward of an older forward is refused by autograd
            for p in unit.parameters:
                torch.autograd.graph.increment_version(p)
            unit.versions = [p._version for p in unit.parameters]

    def fetch(self, unit: OffloadUnit) -> Wait:
        self.back_bytes += unit.nbytes
        return self.host.pull(unit)


def check_groups(groups: Sequence[Sequence[nn.Parameter]]) -> None:
    seen: set[nn.Parameter] = set()
    for i, group in enumerate(groups):
        kinds = {(p.dtype, p.device) for p in group}
        if len(kinds) != 1 or seen.intersection(group):
            what = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(
                f"unit {i} has {what or 'no parameter'}, "
                f"{len(seen.intersection(group))} of them in another unit as well: a unit travels "
                "as one row; give each block parameters of its own, all of one type on one device"
            )
        seen.update(group)
