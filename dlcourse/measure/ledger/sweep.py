"""Adopt storages that came to be where nobody looked: in cells that were not recorded."""

from __future__ import annotations

import gc
import time

from torch import Tensor, nn, optim

from dlcourse.measure.categories import ACTIVATIONS, OTHER
from dlcourse.measure.ledger.owners import Owners
from dlcourse.measure.ledger.storages import Storages


class Sweep:
    """Walks the objects that Python's garbage collector knows.

    A rank is forked from a process that froze its objects (`gc.freeze`), so these are the
    learner's. Unless it must, it never takes more than about 5% of the time: where it is slow it
    is not done in every cell.
    """

    def __init__(self, storages: Storages, owners: Owners) -> None:
        self._storages, self._owners = storages, owners
        self._ended, self._cost = -1e9, 0.0

    def run(self, must: bool) -> None:
        """Look, if something ran unseen since the last time (`must`), or if it is cheap."""
        began = time.monotonic()
        if not must and began - self._ended < 20 * self._cost:
            return
        tensors, optimizers = _tensors_and_optimizers()
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter):
                self._owners.see_parameter(tensor)
        for optimizer in optimizers:
            if hasattr(optimizer, "param_groups"):
                self._owners.see_optimizer(optimizer)
        for tensor in tensors:
            self._storages.track(tensor, ACTIVATIONS if tensor.requires_grad else OTHER)
        self._ended = time.monotonic()
        self._cost = self._ended - began


def _tensors_and_optimizers() -> tuple[list[Tensor], list[optim.Optimizer]]:
    tensors: list[Tensor] = []
    optimizers: list[optim.Optimizer] = []
    found: dict[type, list | None] = {}  # by class: asking each object would take longer
    for thing in gc.get_objects():
        cls = type(thing)
        try:
            where = found[cls]
        except KeyError:
            where = None
            if issubclass(cls, Tensor):
                where = tensors
            elif issubclass(cls, optim.Optimizer):
                where = optimizers
            found[cls] = where
        if where is not None:
            where.append(thing)
    return tensors, optimizers
