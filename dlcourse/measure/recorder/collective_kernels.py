"""Hooks in torch through which every collective of this process passes.

All of torch's collectives pass its dispatcher as `c10d::...` operators: those of Python code,
of functional collectives and DTensor, and those that DDP's reducer starts in C++. A kernel
registered there under the key `BackendSelect`, which every call passes just before its
backend, sees them all, in every thread, and costs nothing where there is no collective. A
`TorchDispatchMode` would have to look at every operator to find them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import DispatchKey
from torch.distributed.distributed_c10d import Work

from dlcourse.measure.recorder.collective_operators import OPERATORS


class Listener(Protocol):
    """Runs the collectives of this process, and their waits, itself."""

    def call(
        self, overload: Any, run: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """A c10d operator; `run` goes on to its backend."""

    def wait(self, run: Callable[..., Any], work: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """`Work.wait`, or a future's."""

    def wait_tensor(self, run: Callable[..., Any], tensor: Tensor) -> Any:
        """The operator with which functional collectives wait for their result."""


_listeners: list[Listener] = []  # the last one gets the calls: a recorder inside another
_libraries: list[torch.library.Library] = []
_waits: list[tuple[Listener, Any, Any]] = []  # who has replaced a class's wait, and what it was


def listen(listener: Listener) -> None:
    """Let everything pass `listener` from now on."""
    if not dist.is_available():
        return
    if not _listeners:
        _register_kernels()
    _listeners.append(listener)
    for cls in (Work, torch._C.Future):
        _waits.append((listener, cls, cls.wait))
        setattr(cls, "wait", _passing_wait(listener, cls.wait))  # noqa: B010


def leave(listener: Listener) -> None:
    """The reverse of `listen`; the last one takes all hooks off torch."""
    for entry in [entry for entry in reversed(_waits) if entry[0] is listener]:
        _waits.remove(entry)
        _, cls, wait = entry
        cls.wait = wait
    if listener in _listeners:
        _listeners.remove(listener)
        if not _listeners:
            while _libraries:
                _libraries.pop()._destroy()


def _register_kernels() -> None:
    after = torch._C._dispatch_keyset_full_after(DispatchKey.BackendSelect)
    library = torch.library.Library("c10d", "IMPL")
    for name in OPERATORS:
        packet = getattr(torch.ops.c10d, name, None)
        if packet is not None:
            kernel = _kernel(packet.default, after)
            library.impl(name, kernel, "BackendSelect", with_keyset=True)
    _libraries.append(library)
    wait = torch.ops._c10d_functional.wait_tensor.default

    def wait_tensor(keyset: Any, tensor: Tensor) -> Any:
        run = partial(wait.redispatch, keyset & after)
        return _listeners[-1].wait_tensor(run, tensor) if _listeners else run(tensor)

    library = torch.library.Library("_c10d_functional", "IMPL")
    library.impl("wait_tensor", wait_tensor, "BackendSelect", with_keyset=True)
    _libraries.append(library)


def _kernel(overload: Any, after: Any) -> Callable[..., Any]:
    def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        run = partial(overload.redispatch, keyset & after)
        if not _listeners:  # the last recorder stopped while another thread was on its way here
            return run(*args, **kwargs)
        return _listeners[-1].call(overload, run, args, kwargs)

    return kernel


def _passing_wait(listener: Listener, original: Callable[..., Any]) -> Callable[..., Any]:
    def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
        return listener.wait(original, work, args, kwargs)

    return wait
