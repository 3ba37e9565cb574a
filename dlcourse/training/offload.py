"""Offload: what a device needs only for a moment lives in another memory, the host's.

`OptimizerOffload`: Adam's state and a float32 master copy live in the host, which also takes the
step. For each unit (a block; what the blocks leave over) gradients go out and parameters come back.

    without overlap    backward ......... | out 3, update, back | out 2, update, back | ...
    with overlap       backward 3 | backward 2, out 3 | backward 1, out 2, update 3 | ...

`ParameterOffload` (in ``offload_parameters.py``) moves blocks' parameters there as well.

The host is the memory of this process, see ``local_host.py``, or a rank, see ``host_rank.py``.

Source: Ren et al., "ZeRO-Offload: Democratizing Billion-Scale Model Training", USENIX ATC 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Wait = Callable[[], Any]  # returns once the copy has arrived


class Unit:
    """Parameters that travel together. ``row`` holds them one behind the other; they are views."""

    def __init__(self, index: int, parameters: Sequence[nn.Parameter]) -> None:
        self.index, self.parameters = index, list(parameters)
        self.row = torch.cat([p.detach().flatten() for p in self.parameters])
        self.nbytes, self.is_here = self.row.nbytes, True
        start = 0
        for p in self.parameters:
            p.data = self.row[start : start + p.numel()].view_as(p)
            start += p.numel()

    def take_gradients(self) -> Tensor:
        """The gradients as one row; the parameters have none any more."""
        if unused := sum(p.grad is None for p in self.parameters):
            raise ValueError(
                f"{unused} of {len(self.parameters)} parameters of unit {self.index} have no "
                "gradient: call backward() before step(), and use every parameter in forward"
            )
        row = torch.cat([p.grad.flatten() for p in self.parameters])
        for p in self.parameters:
            p.grad = None
        return row


class Host(Protocol):
    """Keeps a master copy and Adam's state of each unit."""

    def adopt(self, units: Sequence[Unit]) -> None:
        """Copy the units' parameters; ValueError if there is too little memory."""

    def push(self, unit: Unit, gradients: Tensor) -> Wait:
        """Begin to bring a unit's gradients over."""

    def update(self, unit: Unit) -> None:
        """One step of Adam for this unit, when its gradients are there."""

    def pull(self, unit: Unit) -> Wait:
        """Begin to bring its parameters into ``unit.row``."""

    def forget(self) -> None:
        """A step was cut off: its gradients do not count. RuntimeError where that cannot be."""


class OptimizerOffload:
    """Trains ``model`` with AdamW on a host. Call ``step()`` after each ``backward()``.

    Args:
        model: its ``blocks`` are units, the rest of it is unit 0. On its device already.
        host: takes over master copies and state.
        overlap: gradients leave as soon as backward has made a unit's; without, in ``step()``, and
            each move is waited for.

    Attributes:
        out_bytes, back_bytes: moved to the host and back since the beginning.

    Raises:
        ValueError: a parameter is frozen, or the host has too little memory.
    """

    def __init__(self, model: nn.Module, host: Host, *, overlap: bool = True) -> None:
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        if frozen:
            raise ValueError(
                f"{len(frozen)} parameters do not require a gradient, {frozen[0]} first: a unit "
                "travels as one row, with a gradient for all of it; train them, or leave the "
                "offload out"
            )
        self.host, self.overlap = host, overlap
        self.out_bytes = self.back_bytes = 0
        in_blocks = {p for p in model.blocks.parameters()}
        rest = [p for p in model.parameters() if p not in in_blocks]
        groups = [rest, *(list(block.parameters()) for block in model.blocks)]
        self.units = [Unit(i, parameters) for i, parameters in enumerate(groups)]
        host.adopt(self.units)
        self.leaving: dict[Unit, Wait] = {}
        self.missing = {unit: len(unit.parameters) for unit in self.units}
        for unit in self.units if overlap else ():
            for p in unit.parameters:
                p.register_post_accumulate_grad_hook(lambda _, unit=unit: self.has_gradient(unit))
        model.register_forward_pre_hook(lambda *_: self.begin())

    def begin(self) -> None:
        """Before forward: what a backward that was cut off has left does not count."""
        made = [unit for unit in self.units if self.missing[unit] < len(unit.parameters)]
        if made and any(self.missing.values()):
            self.host.forget()
            for wait in self.leaving.values():
                wait()
            self.leaving.clear()
            for unit in made:
                self.missing[unit] = len(unit.parameters)
                for p in unit.parameters:
                    p.grad = None

    def has_gradient(self, unit: Unit) -> None:
        """autograd has made one more gradient of this unit."""
        if unit in self.leaving:
            raise ValueError(
                "a second backward before step(): the first one's gradients have left already; "
                "give overlap=False to accumulate gradients"
            )
        self.missing[unit] -= 1
        if self.missing[unit] == 0:
            self.push(unit)

    def push(self, unit: Unit) -> None:
        gradients = unit.take_gradients()
        self.out_bytes += gradients.nbytes
        self.leaving[unit] = self.host.push(unit, gradients)

    def step(self) -> None:
        """When it returns, all parameters are the new ones."""
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
        self.leaving.clear()
        self.missing = {unit: len(unit.parameters) for unit in self.units}

    def fetch(self, unit: Unit) -> Wait:
        self.back_bytes += unit.nbytes
        return self.host.pull(unit)
