"""The dispatch mode of the recorder: looks at every operator that torch runs.

For each it asks three things, in as little Python as possible: does it make a new storage
(then the ledger counts it), does it cost FLOPs, and when was the rank at work. What is known
about an operator beforehand is worked out once and kept in a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _python_dispatch as modes

from dlcourse.measure.categories import ACTIVATIONS, COMMUNICATION, OTHER, PARAMETERS
from dlcourse.measure.flops import flops_of
from dlcourse.measure.ledger import Ledger
from dlcourse.measure.recorder.clock import clock
from dlcourse.measure.recorder.spans import GAP_NS, Spans
from dlcourse.measure.tensors import tensors_in

Parameter = nn.Parameter
_PLAIN = frozenset({Tensor, nn.Parameter, nn.Buffer})
_NO_DISPATCH = Tensor.__torch_dispatch__  # of a class that leaves operators as they are
_SIMPLE = frozenset({int, float, bool, type(None), torch.dtype, torch.device, torch.layout})
_COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")

# What to do with an operator.
_VIEW, _NEW, _IN_PLACE, _RESIZE, _COLLECTIVE, _COMPOSITE, _HIGHER_ORDER = range(7)


class Watch(modes.TorchDispatchMode):
    """Feeds a ledger, a FLOP count and the spans of work. One a recorder.

    Attributes:
        fake_collective: called with the operator and arguments of a collective on fake tensors.
        flops: floating-point operations since the cell began.
        busy: an operator is running.
        stepping: an optimizer steps.
    """

    supports_higher_order_operators = True

    def __init__(self, ledger: Ledger, spans: Spans) -> None:
        super().__init__()
        self.fake_collective: Callable[[Any, tuple, dict[str, Any]], None]
        self.flops = 0
        self.busy = False
        self.stepping = False
        self._paused = False
        self.ledger, self._spans = ledger, spans
        self._storages, self._owners, self._series = ledger.storages, ledger.owners, ledger.series
        self._plans: dict[Any, tuple[int, Any, Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True wraps every call once more

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # torch.compile may compile; what it leaves is seen when it runs

    # ------------------------------------------------------------------ on and off

    def __enter__(self) -> Watch:
        self.flops, self.busy, self.stepping, self._paused = 0, False, False, False
        super().__enter__()
        return self

    def remove(self) -> None:
        """Take the mode off the stack, wherever a failed cell has left it."""
        self.resume()
        above = []
        if self in modes._get_current_dispatch_mode_stack():
            while modes._get_current_dispatch_mode() is not self:
                above.append(modes._pop_mode())
            self.__exit__(None, None, None)
            for mode in reversed(above):
                modes._push_mode(mode)

    def pause(self) -> bool:
        """Step aside until `resume`; only if no other mode is on top."""
        if not self._paused and modes._get_current_dispatch_mode() is self:
            modes._pop_mode()
            self._paused = True
        return self._paused

    def resume(self) -> None:
        """Look again."""
        if self._paused:
            self._paused = False
            modes._push_mode(self)
            self._spans.end = clock()  # the rank was at work meanwhile

    # ------------------------------------------------------------------ every operator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        plan = self._plans.get(func)
        if plan is None:
            plan = self._plans[func] = self._plan(func)
        kind, op, count = plan
        if types and not _PLAIN.issuperset(types):
            if FakeTensor not in types:
                if any(cls.__torch_dispatch__ is not _NO_DISPATCH for cls in types):
                    return NotImplemented  # DTensor and its like: come back with what is inside
            elif self._storages.fake_mode is None:
                return func(*args, **kwargs) if kwargs else func(*args)
        if kind == _VIEW:
            if args and (args[0].__class__ is Parameter or (types and _is_parameter(args[0]))):
                self._owners.see_parameter(args[0])
            return op(*args, **kwargs) if kwargs else op(*args)
        spans = self._spans
        now = clock()
        if now - spans.end > GAP_NS and spans.by_operation:
            spans.split(now)
        self.busy = True
        if kind == _NEW:
            result = op(*args, **kwargs) if kwargs else op(*args)
            if count is not None:
                self.flops += count(args, kwargs or {}, result)
            category, kept = self._category(args)
            if result.__class__ is Tensor:
                self._storages.track(result, category, kept)
            else:
                self._count(result, category, kept)
            if now > self._series.window_end:
                self._series.close_window(now)
        elif kind == _IN_PLACE:
            if args and (args[0].__class__ is Parameter or (types and _is_parameter(args[0]))):
                self._owners.see_parameter(args[0])
            result = op(*args, **kwargs) if kwargs else op(*args)
            if now > self._series.window_end:  # what was freed may not wait for a new storage
                self._storages.bury()
                self._series.close_window(now)
        else:
            result = self._unusual(kind, func, args, kwargs or {})
            if count is not None:
                self.flops += count(args, kwargs or {}, result)
        self.busy = False
        spans.end = clock()
        return result

    def _category(self, args: Any) -> tuple[int, int | None]:
        """The category of what an operator makes from these arguments."""
        if self.ledger.in_backward:
            return ACTIVATIONS, OTHER
        if self.stepping:
            return OTHER, None
        tracked = False
        tensors = []
        for a in args:
            cls = a.__class__
            if cls is Tensor:
                tensors.append(a)
                tracked = tracked or a.requires_grad
            elif cls in _SIMPLE:
                continue
            elif cls is Parameter or _is_parameter(a):
                self._owners.see_parameter(a)
                tensors.append(a)
                tracked = tracked or a.requires_grad
            elif cls is list or isinstance(a, Tensor):
                for b in a if cls is list else (a,):
                    if isinstance(b, Tensor):
                        tensors.append(b)
                        tracked = tracked or b.requires_grad
        if tracked:
            if self._spans.phase != "forward":
                self._spans.enter("forward")
            return ACTIVATIONS, None
        # Not tracked, as under no_grad or inside an autograd.Function or a DTensor: still an
        # activation if it comes from one, or from a weight and something that is no weight.
        weights = others = 0
        for tensor in tensors:
            category = self._storages.category(tensor)
            if category == ACTIVATIONS:
                return ACTIVATIONS, None
            if category == PARAMETERS:
                weights += 1
            elif category in (OTHER, COMMUNICATION):
                others += 1
        return (ACTIVATIONS if weights and others else OTHER), None

    def _count(self, result: Any, category: int, kept: int | None) -> None:
        for tensor in tensors_in(result):
            self._storages.track(tensor, category, kept)

    # ------------------------------------------------------------------ the rare ones

    def _unusual(self, kind: int, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        storages = self._storages
        if kind == _COMPOSITE:
            # Arrives whole under inference_mode only: take it apart, and look at the parts.
            modes._push_mode(self)
            try:
                return func.decompose(*args, **kwargs)
            finally:
                modes._pop_mode()
        if kind == _COLLECTIVE:
            if storages.fake_mode is None:  # its c10d operator reports to `CollectiveCalls`
                category, kept = self._category(args)
                result = func(*args, **kwargs)
                self._count(result, COMMUNICATION, None)
                if category == ACTIVATIONS and kept is None:
                    for tensor in tensors_in(result):  # tensor parallelism: the model's activation
                        storages.activate(tensor)
                return result
            if func._opname == "wait_tensor":
                return args[0]  # fake mode would make a second tensor of it
            self.fake_collective(func, args, kwargs)
        result = func(*args, **kwargs)
        if kind == _RESIZE:
            for tensor in (*args[:1], *kwargs.values()):
                if isinstance(tensor, Tensor):
                    storages.track(tensor, *self._category(args))
                    storages.resized(tensor.untyped_storage())
        else:
            self._count(result, COMMUNICATION if kind == _COLLECTIVE else ACTIVATIONS, None)
        return result

    def _plan(self, func: Any) -> tuple[int, Callable[..., Any], Any]:
        if not isinstance(func, OpOverload):
            return _HIGHER_ORDER, func, None
        if func.namespace in _COLLECTIVES:
            return _COLLECTIVE, func, None
        if func.namespace == "prim":  # prim::device and the like, which fake tensors ask for
            return _VIEW, func, None
        name = func.name()
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
            return _COMPOSITE, func, None
        schema = func._schema
        if func._opname in ("resize_", "resize_as_") or any(
            a.kwarg_only and a.alias_info is not None for a in schema.arguments
        ):
            return _RESIZE, func, flops_of(func)  # a product's result in memory that is there
        count = flops_of(func)
        makes = any("Tensor" in str(r.type) and r.alias_info is None for r in schema.returns)
        if makes or count is not None:
            return _NEW, func._op, count
        return (_IN_PLACE if schema.is_mutable else _VIEW), func._op, None


def _is_parameter(value: Any) -> bool:
    """Of a class of its own too; a fake parameter is a FakeTensor that says so."""
    return isinstance(value, Parameter)
