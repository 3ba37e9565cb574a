"""One entry for each live storage, and the category it is in.

A tensor is a view; the bytes belong to its *storage*. So views, tied parameters and flat buffers
count once. An entry is a weak reference: when the last tensor on a storage goes, its entry goes
too.

On fake tensors (`FakeTensorMode` entered before the recorder starts) the same books count what
the tensors *would* take, which makes a model of any size measurable.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dlcourse.measure.categories import ACTIVATIONS, COMMUNICATION, OPTIMIZER_STATE, OTHER
from dlcourse.measure.ledger.series import Series
from dlcourse.measure.tensors import inner_tensors, is_wrapper

_OWNED = OPTIMIZER_STATE  # categories up to here have an owner that can be asked


class Entry(weakref.ref):
    """A live storage. Equality is that of weak references; look-ups go by `key`."""

    __slots__ = ("birth", "category", "kept", "key", "nbytes")
    birth: int  # how many storages had come to be with it
    key: int  # address of the storage's C++ object, unique while it lives
    nbytes: int
    category: int
    kept: int  # category to fall back to when the owner lets go


class Storages:
    """The live storages of a rank.

    Args:
        series: told of every change.
        before_fall: called just before the total falls, for the last look at what is live.

    Attributes:
        fake_mode: the FakeTensorMode whose tensors are counted, if any.
        owned: entries by key, one dict for each category that has owners.
        asking: owners are asked just now: no entry leaves the books meanwhile.
    """

    def __init__(self, series: Series, before_fall: Callable[[], None]) -> None:
        self.fake_mode: Any = None
        self.owned: tuple[dict[int, Entry], ...] = ({}, {}, {})
        self.asking = False
        self._series, self._before_fall = series, before_fall
        self._live: dict[int, Entry] = {}
        self._dead: deque[Entry] = deque()  # filled by finalizers, in any thread

    # ------------------------------------------------------------------ come and go

    def track(self, tensor: Tensor, category: int, kept: int | None = None) -> None:
        """Count a tensor's storage, if it is new, under a category.

        `kept=OTHER` says that an activation is only a passing result of a backward pass, which
        may still turn out to be a communication buffer.
        """
        cls = tensor.__class__
        if cls is not Tensor and cls is not nn.Parameter:
            if isinstance(tensor, FakeTensor):
                if self.fake_mode is None or tensor.fake_mode is not self.fake_mode:
                    return
            else:
                for inner in inner_tensors(tensor):
                    self.track(inner, category, kept)
                return
        elif self.fake_mode is not None or tensor.is_meta:
            return
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse
            return
        key = storage._cdata
        if self._dead:
            self.bury()
        if key not in self._live:
            self._born(storage, key, category, kept)

    def _born(
        self, storage: torch.UntypedStorage, key: int, category: int, kept: int | None = None
    ) -> None:
        entry = Entry(storage, self._dead.append)  # deque.append: atomic, in C, any thread
        entry.key = key
        entry.nbytes = n = storage.nbytes()
        entry.category = category
        entry.kept = category if kept is None else kept
        self._live[key] = entry
        if category <= _OWNED:
            self.owned[category][key] = entry
            entry.kept = OTHER
        self._series.add(category, n)
        entry.birth = self._series.births

    def bury(self) -> None:
        """Take the entries of freed storages off the books."""
        if self.asking or not self._dead:
            return
        self._before_fall()
        dead, live, remove = self._dead, self._live, self._series.remove
        while dead:
            entry = dead.popleft()
            key, category = entry.key, entry.category
            if live.get(key) is entry:  # else a new storage has the address already
                del live[key]
            if category <= _OWNED and self.owned[category].get(key) is entry:
                del self.owned[category][key]
            remove(category, entry.nbytes)

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage changed its size in place (FSDP frees and refills weights like this)."""
        self.bury()
        entry = self._live.get(storage._cdata)
        if entry is None:
            if storage.nbytes() and (storage.device.type == "meta") == (self.fake_mode is not None):
                self._born(storage, storage._cdata, OTHER)
            return
        change = storage.nbytes() - entry.nbytes
        if change < 0:
            self._before_fall()
        entry.nbytes += change
        self._series.resize(entry.category, change)

    # ------------------------------------------------------------------ change their category

    def claim(self, tensor: Tensor | None, category: int) -> None:
        """Put a tensor's storage into a category that has owners, whatever it was in before.

        The lower category wins: a storage that is a parameter stays one.
        """
        self.bury()
        if tensor is None:
            return
        cls = tensor.__class__
        if (cls is Tensor or cls is nn.Parameter) and not self.asking:
            try:
                if tensor.untyped_storage()._cdata in self.owned[category]:
                    return  # nearly always
            except (NotImplementedError, RuntimeError):  # sparse
                return
        for key, storage in self.of(tensor):
            entry = self._live.get(key)
            if entry is None or entry() is None:
                self._born(storage, key, category)
            elif category < entry.category:
                self._move(entry, category)

    def let_go(self, category: int, key: int) -> None:
        """The owner has a storage no longer, which may live on."""
        entry = self.owned[category].get(key)
        if entry is not None and entry() is not None:
            self._move(entry, entry.kept)

    def communicate(self, tensors: Iterable[Tensor]) -> None:
        """These tensors were handed to a collective."""
        for tensor in tensors:
            for key, storage in self.of(tensor):
                entry = self._live.get(key)
                if entry is None:
                    self._born(storage, key, COMMUNICATION)
                elif entry.category <= _OWNED:
                    entry.kept = COMMUNICATION
                elif entry.kept == OTHER:
                    if entry.category == ACTIVATIONS:
                        sizes = entry.nbytes, entry.birth
                        self._series.correct_peak(ACTIVATIONS, COMMUNICATION, *sizes)
                    self._move(entry, COMMUNICATION)
                    entry.kept = COMMUNICATION

    def activate(self, tensor: Tensor) -> None:
        """A tensor that was handed to a collective is an activation of the model all the same."""
        for key, _ in self.of(tensor):
            entry = self._live.get(key)
            if entry is not None and entry.category > _OWNED:
                self._move(entry, ACTIVATIONS)
                entry.kept = ACTIVATIONS

    def _move(self, entry: Entry, category: int) -> None:
        old = entry.category
        if old <= _OWNED:
            self.owned[old].pop(entry.key, None)
        elif category <= _OWNED:
            entry.kept = COMMUNICATION if old == COMMUNICATION else OTHER
        if category <= _OWNED:
            self.owned[category][entry.key] = entry
        entry.category = category
        self._series.move(old, category, entry.nbytes)

    # ------------------------------------------------------------------ look up

    def category(self, tensor: Tensor) -> int | None:
        """The category that the tensor's storage is in; None if it is not in the books."""
        if tensor.__class__ is Tensor and self.fake_mode is None:
            try:
                entry = self._live.get(tensor.untyped_storage()._cdata)
            except (NotImplementedError, RuntimeError):  # sparse
                return None
            return None if entry is None else entry.category
        for key, _ in self.of(tensor):
            entry = self._live.get(key)
            return None if entry is None else entry.category
        return None

    def of(self, tensor: Tensor) -> Iterator[tuple[int, torch.UntypedStorage]]:
        """The storages behind a tensor that are counted, each with its key."""
        self.bury()
        cls = tensor.__class__
        if isinstance(tensor, FakeTensor):
            if self.fake_mode is not None and tensor.fake_mode is self.fake_mode:
                storage = tensor.untyped_storage()
                yield storage._cdata, storage
        elif cls is not Tensor and cls is not nn.Parameter and is_wrapper(tensor):
            for inner in inner_tensors(tensor):
                yield from self.of(inner)
        elif self.fake_mode is None and not tensor.is_meta and tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            yield storage._cdata, storage
