"""When a training step goes forward, backward and through its optimizer.

The phases come from three places that a training step cannot avoid:

- backward: the one Python function through which torch enters its autograd engine. It is
  replaced while a cell is recorded. Hooks on the graph would need a tensor of each graph.
- optimizer: torch's hooks before and after every `Optimizer.step`.
- forward: outside those two, from the first operation that autograd tracks (with the ledger)
  or the first call of an `nn.Module` (without it).

DDP waits in C++ when all gradients are there, where no call of `Work.wait()` is seen: a callback
that the autograd engine runs just before tells when that begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn, optim
from torch.nn.modules import module as nn_module
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from dlcourse.measure.ledger import Ledger
from dlcourse.measure.recorder.dispatch_mode import Watch
from dlcourse.measure.recorder.optimizer_steps import OptimizerSteps
from dlcourse.measure.recorder.spans import Spans


class Phases:
    """Hooks in torch that enter the phases into `spans`, and tell the watch.

    Args:
        watch: None without a ledger.
    """

    def __init__(self, spans: Spans, watch: Watch | None) -> None:
        self._spans, self._watch = spans, watch
        self.optimizer_steps = None if watch is None else OptimizerSteps(watch)
        self._module_hook: Any = None
        self._undo: list[Callable[[], Any]] = []
        self._reset()

    def _reset(self) -> None:
        self._thread = threading.get_ident()
        self._backwards = 0  # nested calls of the autograd engine
        self._optimizers = 0  # nested optimizer steps
        self._stepping: optim.Optimizer | None = None  # the outermost
        self._asked_engine = False

    # ------------------------------------------------------------------ on and off

    def install(self) -> None:
        """Put the hooks into torch; the thread that calls does the rank's work."""
        self._reset()
        undo = self._undo.append
        undo(register_optimizer_step_pre_hook(self._before_step).remove)
        undo(register_optimizer_step_post_hook(self._after_step).remove)
        engine = torch.autograd._engine_run_backward

        def run_backward(*args: Any, **kwargs: Any) -> Any:
            self._before_backward()
            try:
                return engine(*args, **kwargs)
            finally:
                self._after_backward()

        torch.autograd._engine_run_backward = run_backward
        undo(lambda: setattr(torch.autograd, "_engine_run_backward", engine))
        if self._watch is not None:
            self._install_for_ledger(self._watch.ledger)

    def _install_for_ledger(self, ledger: Ledger) -> None:
        def registered(module: nn.Module, name: str, parameter: Any) -> None:
            if parameter is not None:
                ledger.owners.see_parameter(parameter)

        self._undo.append(nn_module.register_module_parameter_registration_hook(registered).remove)
        resize = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:  # passes no dispatcher
            result = resize(storage, size)
            ledger.storages.resized(storage)
            return result

        setattr(torch.UntypedStorage, "resize_", resize_)  # noqa: B010
        self._undo.append(lambda: setattr(torch.UntypedStorage, "resize_", resize))

    def remove(self) -> None:
        """Take everything off again, in reverse."""
        self.expect_forward(False)
        while self._undo:
            self._undo.pop()()
        self._stepping = None

    def is_worker(self) -> bool:
        """Whether the calling thread does the rank's work."""
        # On a GPU the autograd engine runs hooks in a thread of its own.
        return self._backwards > 0 or threading.get_ident() == self._thread

    # ------------------------------------------------------------------ backward

    def _before_backward(self) -> None:
        self._backwards += 1
        if self._backwards > 1:
            return
        self._asked_engine = False
        if self._watch is not None:
            self._watch.resume()
            self._watch.ledger.in_backward = True
        self._spans.enter("backward")

    def _after_backward(self) -> None:
        self._backwards -= 1
        if self._backwards > 0:
            return
        if self._watch is not None:
            ledger = self._watch.ledger
            ledger.in_backward = False
            ledger.owners.see_gradients()  # also those that were put in place by hand, as by ZeRO 2
        self._spans.enter("optimizer" if self._optimizers else "compute")

    def collective_starts(self) -> None:
        """A collective is about to start."""
        if self._backwards and not self._asked_engine:
            # DDP waits for its collectives in C++ when all gradients are there. The engine
            # runs callbacks in the order in which they were queued, so this comes before it.
            self._asked_engine = True
            try:
                torch.autograd.Variable._execution_engine.queue_callback(self._spans.drained)
            except RuntimeError:  # another thread than the one that runs backward
                self._asked_engine = False

    # ------------------------------------------------------------------ optimizer

    def _before_step(self, optimizer: optim.Optimizer, args: tuple, kwargs: Any) -> None:
        if self._optimizers and optimizer is self._stepping:
            self._optimizers = 0  # its last step failed, so that its end was not seen
        self._optimizers += 1
        if self._optimizers > 1:
            return
        self._stepping = optimizer
        self._spans.enter("optimizer")
        if self.optimizer_steps is not None:
            self.optimizer_steps.before(optimizer, closure=len(args) > 1 or bool(kwargs))

    def _after_step(self, optimizer: optim.Optimizer, args: tuple, kwargs: Any) -> None:
        self._optimizers = max(0, self._optimizers - 1)
        if self._optimizers > 0:
            return
        self._stepping = None
        if self.optimizer_steps is not None:
            self.optimizer_steps.after(optimizer)
        self._spans.enter("compute")
        if not self._spans.by_operation:
            self.expect_forward(True)

    # ------------------------------------------------------------------ forward

    def expect_forward(self, on: bool) -> None:
        """A hook on all modules that tells when forward begins, and is then taken off."""
        if on and self._module_hook is None:
            self._module_hook = nn_module.register_module_forward_pre_hook(self._first_module)
        elif not on and self._module_hook is not None:
            self._module_hook.remove()
            self._module_hook = None

    def _first_module(self, module: nn.Module, args: Any) -> None:
        self.expect_forward(False)
        if self._backwards == 0 and self._optimizers == 0:
            self._spans.enter("forward")
