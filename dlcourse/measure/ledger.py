"""Live tensor storages by category: what the memory of a rank is made of, at any moment.

A tensor is a view; the bytes belong to its *storage*. The ledger keeps one entry for each
live storage, so views, tied parameters and flat buffers count once. An entry is a weak
reference: when the last tensor on a storage goes, its entry goes too.

    parameters       storages behind an `nn.Parameter`, or a tensor that an optimizer updates
    gradients        storages behind the `.grad` of one of those
    optimizer_state  tensors in `optimizer.state` (moments, and the step counters)
    activations      made by an operation that autograd tracks, or during a backward pass
    communication    handed to a collective, and none of the above (a gradient bucket, a
                     gathered weight). What the forward pass made stays an activation.
    other            the rest: the batch, masks, buffers, what an optimizer step needs for a moment

Bytes are those of the storages. CUDA's allocator rounds each up to 512 bytes, so that
`torch.cuda.memory_allocated()` is a little larger. What operators allocate and free inside
themselves (workspaces) is not seen, nor what C++ code allocates and keeps (DDP's buckets are
seen when they are reduced).

On fake tensors (`FakeTensorMode` entered before the recorder starts) the same ledger counts
what the tensors *would* take, which makes a model of any size measurable.
"""

from __future__ import annotations

import gc
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dlcourse.measure.run import CATEGORIES

PARAMETERS, GRADIENTS, OPTIMIZER_STATE, ACTIVATIONS, COMMUNICATION, OTHER = range(6)
_OWNED = OPTIMIZER_STATE  # categories up to here have an owner that can be asked
_SERIES_WINDOWS = 200  # at most two points each


class Entry(weakref.ref):
    """A live storage. Equality is that of weak references; look-ups go by `key`."""

    __slots__ = ("category", "kept", "key", "nbytes")
    key: int  # address of the storage's C++ object, unique while it lives
    nbytes: int
    category: int
    kept: int  # category to fall back to when the owner lets go


class _Known:
    """A parameter: weak reference, hook, and where its data was when last seen."""

    __slots__ = ("hook", "key", "ref")

    def __init__(self, ref: weakref.ref) -> None:
        self.ref, self.key, self.hook = ref, 0, None


class Ledger:
    """The storages of this rank. Lives as long as the rank; one cell after another.

    All methods are for the recorded thread, except `snapshot`, which any thread may call.

    Attributes:
        totals: live bytes, one number a category, in the order of `CATEGORIES`.
        total: their sum.
        window_end: ns at which the next point of the series is due.
        unseen: set it when something ran that was not recorded: storages may have come to be.
        peak: largest total since `reset`; `at_peak` its categories; `peaks` each one's own.
    """

    def __init__(self) -> None:
        self.totals = [0] * len(CATEGORIES)
        self.total = 0
        self.fake_mode: Any = None  # the FakeTensorMode whose tensors are counted, if any
        self.in_backward = False
        self._live: dict[int, Entry] = {}
        self._dead: deque[Entry] = deque()  # filled by finalizers, in any thread
        self._owned: tuple[dict[int, Entry], ...] = ({}, {}, {})
        self._parameters: dict[int, _Known] = {}
        self._tenants: dict[int, int] = {}  # storage -> number of parameters in it
        self._optimizers: weakref.WeakSet[optim.Optimizer] = weakref.WeakSet()
        self.stepping: optim.Optimizer | None = None  # its state is looked up at each new peak
        self._hooking = False
        self._asking = False
        self.unseen = False
        self._states_seen = 0
        self._swept_at, self._sweep_cost = -1e9, 0.0
        self.reset(time.monotonic_ns())
        _ledgers.add(self)
        _let_tensors_be_swapped()

    # ------------------------------------------------------------------ storages

    def track(self, tensor: Tensor, category: int, kept: int | None = None) -> None:
        """Count a tensor's storage, if it is new, under a category.

        `kept=OTHER` says that an activation is only a passing result of a backward pass, which
        may still turn out to be a communication buffer.
        """
        cls = tensor.__class__
        if cls is not Tensor and cls is not nn.Parameter:
            if cls is FakeTensor:
                if self.fake_mode is None or tensor.fake_mode is not self.fake_mode:
                    return
            else:
                for inner in _inner(tensor):
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
            self._bury()
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
            self._owned[category][key] = entry
            entry.kept = OTHER
        self.totals[category] += n
        self.total += n
        if category != OTHER and self.totals[category] > self.peaks[category]:
            self.peaks[category] = self.totals[category]
        if self.total > self._high:
            self._high = self.total
        if self.total > self._window_high:
            self._window_high = self.total
            self._window_point = [0, *self.totals]

    def _bury(self) -> None:
        """Take the entries of freed storages off the books.

        Just before that the total may be at its highest: the total only falls here.
        """
        if self._asking:  # while owners are asked, nothing changes
            return
        if self.stepping is not None:
            self._ask(self._newest_state, self.stepping)
        if self.total > self.peak:
            self._new_peak()
        # "other" is where storages wait until their owner is known: counted late.
        if self.totals[OTHER] > self.peaks[OTHER]:
            self.peaks[OTHER] = self.totals[OTHER]
        dead, live, totals = self._dead, self._live, self.totals
        while dead:
            entry = dead.popleft()
            key, category = entry.key, entry.category
            if live.get(key) is entry:  # else a new storage has the address already
                del live[key]
            if category <= _OWNED and self._owned[category].get(key) is entry:
                del self._owned[category][key]
            totals[category] -= entry.nbytes
            self.total -= entry.nbytes

    def claim(self, tensor: Tensor | None, category: int) -> None:
        """Put a tensor's storage into a category, whatever it was in before.

        The lower category wins: a storage that is a parameter stays one.
        """
        if self._dead:
            self._bury()
        cls = tensor.__class__
        if (cls is Tensor or cls is nn.Parameter) and not self._asking:
            try:
                if tensor.untyped_storage()._cdata in self._owned[category]:
                    return  # nearly always
            except (NotImplementedError, RuntimeError):  # sparse
                return
        for key, storage in self._storages(tensor):
            entry = self._live.get(key)
            if entry is None or entry() is None:
                self._born(storage, key, category)
            elif category < entry.category:
                self._move(entry, category)

    def _move(self, entry: Entry, category: int) -> None:
        old = entry.category
        if old <= _OWNED:
            self._owned[old].pop(entry.key, None)
        elif category <= _OWNED:
            entry.kept = COMMUNICATION if old == COMMUNICATION else OTHER
        if category <= _OWNED:
            self._owned[category][entry.key] = entry
        entry.category = category
        self.totals[old] -= entry.nbytes
        self.totals[category] += entry.nbytes
        if self.totals[category] > self.peaks[category]:
            self.peaks[category] = self.totals[category]

    def communicate(self, tensors: Iterable[Tensor]) -> None:
        """These tensors were handed to a collective."""
        for tensor in tensors:
            for key, storage in self._storages(tensor):
                entry = self._live.get(key)
                if entry is None:
                    self._born(storage, key, COMMUNICATION)
                elif entry.category <= _OWNED:
                    entry.kept = COMMUNICATION
                elif entry.kept == OTHER:
                    self._move(entry, COMMUNICATION)
                    entry.kept = COMMUNICATION

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage changed its size in place (FSDP frees and refills weights like this)."""
        if self._dead:
            self._bury()
        entry = self._live.get(storage._cdata)
        if entry is None:
            if storage.nbytes() and (storage.device.type == "meta") == (self.fake_mode is not None):
                self._born(storage, storage._cdata, OTHER)
            return
        change = storage.nbytes() - entry.nbytes
        if change < 0 and self.total > self.peak:
            self._new_peak()
        entry.nbytes += change
        self.totals[entry.category] += change
        self.total += change
        self._high = max(self._high, self.total)
        self.peaks[entry.category] = max(self.peaks[entry.category], self.totals[entry.category])

    def category(self, tensor: Tensor) -> int | None:
        """The category that the tensor's storage is in; None if it is not in the books."""
        if tensor.__class__ is Tensor and self.fake_mode is None:
            try:
                entry = self._live.get(tensor.untyped_storage()._cdata)
            except (NotImplementedError, RuntimeError):  # sparse
                return None
            return None if entry is None else entry.category
        for key, _ in self._storages(tensor):
            entry = self._live.get(key)
            return None if entry is None else entry.category
        return None

    def activate(self, tensor: Tensor) -> None:
        """A tensor that was handed to a collective is an activation of the model all the same."""
        for key, _ in self._storages(tensor):
            entry = self._live.get(key)
            if entry is not None and entry.category > _OWNED:
                self._move(entry, ACTIVATIONS)
                entry.kept = ACTIVATIONS

    def _storages(self, tensor: Tensor | None) -> Iterator[tuple[int, torch.UntypedStorage]]:
        if self._dead:
            self._bury()
        if tensor is None:
            return
        cls = tensor.__class__
        if cls is FakeTensor:
            if self.fake_mode is not None and tensor.fake_mode is self.fake_mode:
                storage = tensor.untyped_storage()
                yield storage._cdata, storage
        elif cls is not Tensor and cls is not nn.Parameter and _is_wrapper(tensor):
            for inner in _inner(tensor):
                yield from self._storages(inner)
        elif self.fake_mode is None and not tensor.is_meta and tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            yield storage._cdata, storage

    # ------------------------------------------------------------------ owners

    def see_parameter(self, parameter: Tensor) -> None:
        """A parameter is in use: remember it, and notice when its data has moved."""
        number = id(parameter)
        known = self._parameters.get(number)
        if known is None:
            known = _Known(weakref.ref(parameter, lambda _: self._forget(number)))
            self._parameters[number] = known
        elif parameter.__class__ is nn.Parameter and (
            parameter.untyped_storage()._cdata == known.key
        ):
            return
        if self._hooking and known.hook is None and parameter.requires_grad:
            self._hook(known, parameter)
        self._place(known, parameter)

    def _place(self, known: _Known, parameter: Tensor) -> None:
        """Note where a parameter's data is; what it left is no parameter any more."""
        for key, _ in self._storages(parameter):
            if key != known.key:
                self._leave(known.key)
                known.key = key
                self._tenants[key] = self._tenants.get(key, 0) + 1
        self.claim(parameter, PARAMETERS)

    def _leave(self, key: int) -> None:
        tenants = self._tenants.pop(key, 0) - 1
        if tenants > 0:
            self._tenants[key] = tenants
        else:
            entry = self._owned[PARAMETERS].get(key)
            if entry is not None and entry() is not None:
                self._move(entry, entry.kept)

    def _forget(self, number: int) -> None:
        known = self._parameters.pop(number, None)
        if known is not None:
            self._leave(known.key)

    def release(self, parameter: Tensor) -> bool:
        """Hold no reference to a parameter any more. False: there was none."""
        known = self._parameters.get(id(parameter))
        if known is None or known.ref() is not parameter:
            return False
        if known.hook is not None:
            known.hook.remove()
        self._forget(id(parameter))
        return True

    def _hook(self, known: _Known, parameter: Tensor) -> None:
        if parameter.is_leaf:
            known.hook = parameter.register_post_accumulate_grad_hook(self.see_gradient)
            # Before the learner's own hooks, which may free the gradient. (Not move_to_end: C++
            # goes through the underlying dict, in the order of insertion.)
            hooks = parameter._post_accumulate_grad_hooks
            theirs = [item for item in hooks.items() if item[0] != known.hook.id]
            for number, _ in theirs:
                del hooks[number]
            hooks.update(theirs)

    def see_gradient(self, parameter: Tensor) -> None:
        """autograd has just added to `parameter.grad`."""
        self.claim(parameter.grad, GRADIENTS)

    def see_gradients(self) -> None:
        """Put every `parameter.grad` under gradients, whoever has set it."""
        for known in list(self._parameters.values()):
            parameter = known.ref()
            if parameter is not None and parameter.is_leaf and parameter.grad is not None:
                self.claim(parameter.grad, GRADIENTS)

    def hook_parameters(self, on: bool) -> None:
        """Put hooks on the known parameters, or take them off again.

        The hook tells at once when a gradient comes to be. It is there only while a cell is
        recorded: it must not slow others, or travel with a model that is saved.
        """
        self._hooking = on
        for known in list(self._parameters.values()):
            parameter = known.ref()
            if on and known.hook is None and parameter is not None and parameter.requires_grad:
                self._hook(known, parameter)
            elif not on and known.hook is not None:
                known.hook.remove()
                known.hook = None

    def see_optimizer(self, optimizer: optim.Optimizer) -> None:
        """An optimizer steps: what it updates are parameters, what it keeps is its state."""
        if optimizer not in self._optimizers:
            self._optimizers.add(optimizer)
            self.see_state(optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self.see_parameter(parameter)
                if parameter.grad is not None:
                    self.claim(parameter.grad, GRADIENTS)
        self._states_seen = len(optimizer.state)

    def see_state(self, optimizer: optim.Optimizer) -> None:
        """Put the optimizer's state tensors under optimizer_state."""
        for value in optimizer.state.values():
            for tensor in _tensors(value):
                self.claim(tensor, OPTIMIZER_STATE)
        if not type(optimizer).__module__.startswith("torch."):
            # A learner's optimizer may keep its moments as attributes.
            for name, value in vars(optimizer).items():
                if name not in ("state", "param_groups", "defaults"):
                    for tensor in _tensors(value):
                        self.claim(tensor, OPTIMIZER_STATE)

    def resolve(self, optimizers: bool = True) -> None:
        """Ask all owners what they own now, and release what they no longer own.

        Needed because `p.data = ...`, `p.grad = ...` and `state[...] = ...` do not pass the
        dispatcher.
        """
        if self._dead:
            self._bury()
        owned: set[int] = set()
        for known in list(self._parameters.values()):
            parameter = known.ref()
            if parameter is None:
                continue
            self._place(known, parameter)
            owned.add(known.key)
            if parameter.is_leaf and parameter.grad is not None:
                self.claim(parameter.grad, GRADIENTS)
                owned.update(key for key, _ in self._storages(parameter.grad))
        for category in (PARAMETERS, GRADIENTS):
            if not owned.issuperset(self._owned[category]):
                for key, entry in list(self._owned[category].items()):
                    if key not in owned:  # a gradient bucket, a gathered weight
                        self._move(entry, entry.kept)
        if optimizers:
            for optimizer in list(self._optimizers):
                self.see_state(optimizer)

    def sweep(self) -> None:
        """Adopt storages that came to be where nobody looked: in cells that were not recorded.

        Walks the objects that Python's garbage collector knows. A rank is forked from a
        process that froze its objects (`gc.freeze`), so these are the learner's. Where nothing
        has run unseen since the last time (`unseen`), it never takes more than about 5% of the
        time: where it is slow it is not done in every cell.
        """
        now = time.monotonic()
        if not self.unseen and now - self._swept_at < 20 * self._sweep_cost:
            return
        self.unseen = False
        kinds: dict[type, int] = {}
        tensors, optimizers = [], []
        for thing in gc.get_objects():
            cls = type(thing)
            kind = kinds.get(cls)
            if kind is None:
                kind = kinds[cls] = (
                    1 if issubclass(cls, Tensor) else 2 if issubclass(cls, optim.Optimizer) else 0
                )
            if kind == 1:
                tensors.append(thing)
            elif kind == 2:
                optimizers.append(thing)
        del thing
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter):
                self.see_parameter(tensor)
        for optimizer in optimizers:
            if hasattr(optimizer, "param_groups"):
                self.see_optimizer(optimizer)
        for tensor in tensors:
            self.track(tensor, ACTIVATIONS if tensor.requires_grad else OTHER)
        self._swept_at = time.monotonic()
        self._sweep_cost = self._swept_at - now

    # ------------------------------------------------------------------ results

    def _new_peak(self) -> None:
        if self.in_backward:
            self._ask(self.see_gradients)
        self.peak = self.total
        self.at_peak = list(self.totals)

    def _ask(self, question: Callable[..., None], *args: Any) -> None:
        self._asking = True
        try:
            question(*args)
        finally:
            self._asking = False

    def _newest_state(self, optimizer: optim.Optimizer) -> None:
        """The state that an optimizer's first step is just making: the newest entries."""
        new = len(optimizer.state) - self._states_seen
        if new > 0:  # the last one may have been incomplete when it was looked at before
            for key in islice(reversed(optimizer.state), new + 1):
                for tensor in _tensors(optimizer.state[key]):
                    self.claim(tensor, OPTIMIZER_STATE)
            self._states_seen += new - 1

    def transient(self, extra: int) -> None:
        """For a moment `extra` bytes of "other" were live too, unseen."""
        if self.total + extra > self.peak:
            self.peak = self.total + extra
            self.at_peak = list(self.totals)
            self.at_peak[OTHER] += extra
            self.peaks[OTHER] = max(self.peaks[OTHER], self.totals[OTHER] + extra)

    def high_water(self) -> int:
        """The largest total since this was last asked."""
        if self._dead:
            self._bury()
        high, self._high = self._high, self.total
        return high

    def close_window(self, now_ns: int) -> None:
        """Add a point to the series (called when `window_end` has passed)."""
        # The highest moment of each window is kept, so no peak gets lost by thinning.
        self._window_point[0] = now_ns
        self._series.append(self._window_point)
        if len(self._series) >= 2 * _SERIES_WINDOWS:
            self._window_ns *= 2
            pairs = zip(self._series[::2], self._series[1::2], strict=True)
            self._series = [max(pair, key=lambda p: sum(p[1:])) for pair in pairs]
        self.window_end = now_ns + self._window_ns
        self._window_high = self.total
        self._window_point = [0, *self.totals]

    def reset(self, now_ns: int) -> None:
        """Start a new cell: peaks and series begin at what is live now."""
        if self._dead:
            self._bury()
        self.peak = self.total
        self.at_peak = list(self.totals)
        self.peaks = list(self.totals)
        self._high = self.total
        self._series: list[list[int]] = [[now_ns, *self.totals]]
        self._window_ns = 1_000_000
        self.window_end = now_ns + self._window_ns
        self._window_high = self.total
        self._window_point = [0, *self.totals]

    def finish(self, now_ns: int) -> dict[str, Any]:
        """The memory part of a record."""
        self.resolve()
        self.peaks[OTHER] = max(self.peaks[OTHER], self.totals[OTHER])
        if self.total > self.peak:
            self._new_peak()
        if self._window_high > self.total:
            self.close_window(now_ns)
        series = [*self._series, [now_ns, *self.totals]]
        return {
            "peak_bytes": self.peak,
            "at_peak": _named(self.at_peak),
            "peaks": _named(self.peaks),
            "end": _named(self.totals),
            "series": series,
        }

    def snapshot(self) -> dict[str, int]:
        """Live bytes by category, from any thread (may lag by one operation)."""
        return _named(self.totals)


_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _let_tensors_be_swapped() -> None:
    """Step aside for `torch.utils.swap_tensors`, which refuses tensors with weak references.

    `Module._apply` uses it (`to_empty`, `cuda`, ...) where parameters are DTensors. Stays for the
    life of the process: the ledger keeps its references between cells too.
    """
    swap = torch.utils.swap_tensors
    if hasattr(swap, "__wrapped__"):
        return

    @wraps(swap)
    def swap_tensors(t1: Tensor, t2: Tensor) -> None:
        held = [(ledger, t) for ledger in list(_ledgers) for t in (t1, t2) if ledger.release(t)]
        try:
            swap(t1, t2)
        finally:
            for ledger, tensor in held:
                ledger.see_parameter(tensor)

    torch.utils.swap_tensors = swap_tensors


def _named(totals: list[int]) -> dict[str, int]:
    return dict(zip(CATEGORIES, totals, strict=True))


def _is_wrapper(tensor: Tensor) -> bool:
    return is_traceable_wrapper_subclass(tensor)


def _inner(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a wrapper (DTensor, ...) is made of."""
    if _is_wrapper(tensor):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            part = getattr(tensor, name)
            if isinstance(part, Tensor):  # a DTensor names its device mesh, too
                yield part
    elif type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__:
        yield tensor.as_subclass(Tensor)


def _tensors(value: Any, depth: int = 2) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for v in value:
            yield from _tensors(v, depth - 1)
