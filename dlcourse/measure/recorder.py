"""The recorder of one rank: everything that a cell did, seen from inside.

    recorder = Recorder(rank, world_size)      # once, when the rank starts
    recorder.start(); ...the cell...; record = recorder.stop()

and in the cell, at the end of each training step, `mark_step(tokens=..., loss=...)`.

Collectives come from kernels on torch's c10d operators (`collectives`), phases from torch's
hooks (`timeline`), storages and FLOPs from a `TorchDispatchMode` that looks at every operator
(`watch`, `ledger`). That mode is what costs time. So it does as little as it can, and it steps
aside while an optimizer of torch's own updates parameters, once two such steps were watched:
what they need for a moment is remembered and added to the peak.

Cost, as CPU time of a training step of one process with one thread (GPT of 874 k parameters,
4 sequences of 128 tokens, AdamW; medians of interleaved steps; torch 2.13 on a busy 2-core
machine): 1.30 to 1.41 times the step without a recorder. A mode that does nothing costs 1.17 to
1.28 in the same runs, torch's own MemTracker 8. So for times that matter use
`Recorder(ledger=False)`, which has no mode, and so no memory and no FLOPs: 0.985 to 0.998
times, that is, nothing that could be measured. A larger model hides more of it: the cost is 5 to 15
microseconds an operator, whatever its size.
"""

from __future__ import annotations

import gc
import hashlib
import platform
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as nn_module
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from dlcourse.measure.collective_calls import Collectives
from dlcourse.measure.ledger import Ledger
from dlcourse.measure.network_counters import read_wire, wire_since
from dlcourse.measure.process_memory import CachedPss
from dlcourse.measure.run import CATEGORIES
from dlcourse.measure.timeline import Mark, Marks, Timeline, clock
from dlcourse.measure.watch import Watch

# Optimizers whose step leaves nothing new behind, does no matrix product and no collective.
_QUIET_OPTIMIZERS = frozenset(
    getattr(optim, name)
    for name in (
        *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam"),
        *("RMSprop", "Adagrad", "Adadelta", "Rprop", "ASGD"),
    )
)
_BLOCKED_NS = 50_000_000

_current: Recorder | None = None


def mark_step(tokens: int = 0, loss: float | Tensor | None = None) -> None:
    """A training step ends here: feeds step times, tokens per second and the panel.

    Args:
        tokens: tokens that this rank has processed in the step. The ranks' numbers are added,
            so where several ranks work on the same tokens only one of them should give them.
        loss: this rank's loss (a number, or a tensor with one element).

    Does nothing where no recorder is on.
    """
    if _current is not None:
        _current.mark_step(tokens, loss)


def live_bytes() -> dict[str, int]:
    """Bytes of this process's live tensors by category, once what is no longer used is freed."""
    for _ in range(3):  # what an earlier model leaves: reference cycles inside reference cycles
        if not gc.collect():
            break
    with Recorder(0, 1) as recorder:
        pass
    return recorder.record["memory"]["end"]


class Recorder:
    """Records one rank, one cell after another.

    Args:
        rank: this process's rank in the world.
        world_size: number of ranks.
        ledger: False leaves out storages, FLOPs and the dispatch mode: communication, phases
            and steps only, at next to no cost.

    `start()` and `stop()` belong to the thread that runs the cell; `sample()` to any other.
    Also a context manager; then `record` holds the result.
    """

    def __init__(self, rank: int, world_size: int, ledger: bool = True) -> None:
        self.rank, self.world_size = rank, world_size
        self.record: dict[str, Any] | None = None
        self.active = False
        self.ledger = Ledger() if ledger else None
        self._marks = Marks()
        self._timeline = Timeline(self._marks)
        self.collectives = Collectives(
            self._marks,
            blocked=self._timeline.blocked,
            handed=self.ledger.communicate if self.ledger else None,
            starting=self._starting,
            mine=self._is_worker,
        )
        self._watch = Watch(self.ledger, self._timeline, self.collectives) if ledger else None
        self._learnt: weakref.WeakKeyDictionary[optim.Optimizer, _StepMemory]
        self._learnt = weakref.WeakKeyDictionary()
        self._pss = CachedPss()
        self._host = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
        self._reset()

    def _reset(self) -> None:
        self._steps: list[dict[str, Any]] = []
        self._step_start: Mark = None
        self._tokens = 0
        self._loss: float | None = None
        self._backwards = 0  # nested calls of the autograd engine
        self._optimizers = 0  # nested optimizer steps
        self._stepping: optim.Optimizer | None = None  # the outermost
        self._asked_engine = False
        self._undo: list[Callable[[], Any]] = []
        self._module_hook: Any = None

    # ------------------------------------------------------------------ start and stop

    def start(self) -> None:
        """Begin to record. What an earlier `start` without `stop` recorded is thrown away."""
        global _current
        if self.active:
            self.stop()
        self._reset()
        self._outer, _current = _current, self
        self.active = True
        self._thread = threading.get_ident()
        self._start_ns, self._wire = clock(), None
        self._marks.start()
        self._timeline.reset(by_operation=self.ledger is not None and not self._marks.cuda)
        self.collectives.reset()
        self._install()
        if self.ledger is not None:
            self.ledger.fake_mode = torch._guards.active_fake_mode()
            self.ledger.in_backward = False
            self.ledger.stepping = None
            self.ledger.sweep()
            self.ledger.resolve()
            self.ledger.hook_parameters(True)
        self._wire = read_wire()
        self._start_ns = clock()
        if self.ledger is not None:
            self.ledger.reset(self._start_ns)
            self._watch.__enter__()
        if self._timeline.by_operation:
            self._timeline.enter("compute")
        else:
            self._expect_forward(True)

    def stop(self) -> dict[str, Any]:
        """End recording. Returns the record: plain data, see `dlcourse.measure.run`.

        Leaves nothing behind in torch: no mode, no hook, no kernel, whatever the cell did.
        """
        global _current
        if not self.active:
            raise ValueError("stop() without start(): the recorder is not on; call start() first.")
        end = clock()
        if self._watch is not None:
            self._watch.remove()
        self._expect_forward(False)
        while self._undo:
            self._undo.pop()()
        self.active = False
        _current, self._outer, self._stepping = self._outer, None, None
        memory, flops = _NO_MEMORY, 0
        if self.ledger is not None:
            self.ledger.in_backward = False
            self.ledger.stepping = None
            self.ledger.hook_parameters(False)
            memory, flops = self.ledger.finish(end), self._watch.flops
        when = self._marks.resolve
        self.record = {
            "rank": self.rank,
            "world_size": self.world_size,
            "host": self._host,
            "wall_s": (end - self._start_ns) / 1e9,
            "start_ns": self._start_ns,
            "comm": [event.as_dict(self._marks) for event in self.collectives.events],
            "memory": memory,
            "spans": self._timeline.finish(),
            "steps": [
                step | {"start_ns": when(step["start_ns"]), "end_ns": when(step["end_ns"])}
                for step in self._steps
            ],
            "flops": flops,
            "pss_bytes": self._pss.read(),
            "wire": wire_since(self._wire),
        }
        return self.record

    def __enter__(self) -> Recorder:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # ------------------------------------------------------------------ while it runs

    def sample(self) -> dict[str, Any]:
        """How things stand, for the live panel. For any thread; takes microseconds."""
        return {
            "memory": self.ledger.snapshot() if self.ledger else dict.fromkeys(CATEGORIES, 0),
            "pss_bytes": self._pss.read(),
            "comm_bytes": dict(self.collectives.bytes),
            "comm_calls": dict(self.collectives.calls),
            "collective": self._blocked_in(),
            "tokens": self._tokens,
            "steps": len(self._steps),
            "loss": self._loss,
        }

    def _blocked_in(self) -> dict[str, Any] | None:
        """The collective that the rank waits in; not one that runs beside its work."""
        if not self.active:
            return None
        event = self.collectives.waiting
        timeline = self._timeline
        idle = timeline.by_operation and not self._watch.busy
        if event is None and idle and clock() - timeline.end > _BLOCKED_NS:
            # C++ code waits unseen: no operator for a while, and a collective under way.
            event = next(iter(list(self.collectives.pending.values())), None)
        if event is None:
            return None
        return {"op": event.op, "seq": event.seq, "since_ns": event.issued_ns}

    def mark_step(self, tokens: int = 0, loss: float | Tensor | None = None) -> None:
        """See the function of the same name."""
        if isinstance(loss, Tensor):
            loss = None if isinstance(loss, FakeTensor) or loss.is_meta else loss.item()
        now = self._marks.now()
        start = self._step_start
        if start is None:  # the first step begins with its forward pass, not with the cell
            first = self._timeline.first_forward
            start = self._start_ns if first is None else first
        self._step_start = now
        self._tokens += int(tokens)
        self._loss = None if loss is None else float(loss)
        self._steps.append(
            {"start_ns": start, "end_ns": now, "tokens": int(tokens), "loss": self._loss}
        )
        if self._timeline.phase == "forward":
            self._timeline.enter("compute")
        if self.ledger is not None:
            self.ledger.resolve(optimizers=False)
        if not self._timeline.by_operation:
            self._expect_forward(True)

    # ------------------------------------------------------------------ hooks

    def _install(self) -> None:
        """Everything that is put into torch while a cell is recorded, with its undoing."""
        undo = self._undo.append
        self.collectives.start()
        undo(self.collectives.stop)
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
        ledger = self.ledger
        if ledger is None:
            return
        undo(nn_module.register_module_parameter_registration_hook(self._registered).remove)
        resize = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:  # passes no dispatcher
            result = resize(storage, size)
            ledger.resized(storage)
            return result

        torch.UntypedStorage.resize_ = resize_
        undo(lambda: setattr(torch.UntypedStorage, "resize_", resize))

    def _registered(self, module: nn.Module, name: str, parameter: Tensor | None) -> None:
        if parameter is not None:
            self.ledger.see_parameter(parameter)

    def _before_backward(self) -> None:
        self._backwards += 1
        if self._backwards > 1:
            return
        self._asked_engine = False
        if self.ledger is not None:
            self._watch.resume()
            self.ledger.in_backward = True
        self._timeline.enter("backward")

    def _after_backward(self) -> None:
        self._backwards -= 1
        if self._backwards > 0:
            return
        if self.ledger is not None:
            self.ledger.in_backward = False
            self.ledger.see_gradients()  # also those that were put in place by hand, as by ZeRO 2
        self._timeline.enter("optimizer" if self._optimizers else "compute")

    def _is_worker(self) -> bool:
        # On a GPU the autograd engine runs hooks in a thread of its own.
        return self._backwards > 0 or threading.get_ident() == self._thread

    def _starting(self) -> None:
        """A collective is about to start."""
        if self._backwards and not self._asked_engine:
            # DDP waits for its collectives in C++ when all gradients are there. The engine
            # runs callbacks in the order in which they were queued, so this comes before it.
            self._asked_engine = True
            try:
                torch.autograd.Variable._execution_engine.queue_callback(self._timeline.drained)
            except RuntimeError:  # another thread than the one that runs backward
                self._asked_engine = False

    def _before_step(self, optimizer: optim.Optimizer, args: tuple, kwargs: Any) -> None:
        if self._optimizers and optimizer is self._stepping:
            self._optimizers = 0  # its last step failed, so that its end was not seen
        self._optimizers += 1
        if self._optimizers > 1:
            return
        self._stepping = optimizer
        self._timeline.enter("optimizer")
        if self.ledger is None:
            return
        self._watch.resume()
        self._watch.stepping = True
        self.ledger.see_optimizer(optimizer)
        self.ledger.stepping = optimizer
        learnt = self._learnt.setdefault(optimizer, _StepMemory())
        closure = len(args) > 1 or bool(kwargs)
        if learnt.steady(optimizer) and not closure and self._watch.pause():
            self.ledger.transient(learnt.extra)
        else:
            learnt.begin(self.ledger)

    def _after_step(self, optimizer: optim.Optimizer, args: tuple, kwargs: Any) -> None:
        self._optimizers = max(0, self._optimizers - 1)
        if self._optimizers > 0:
            return
        self._stepping = None
        if self.ledger is not None:
            self._watch.resume()
            self._watch.stepping = False
            self.ledger.see_state(optimizer)
            self.ledger.stepping = None
            self._learnt.setdefault(optimizer, _StepMemory()).end(optimizer, self.ledger)
        self._timeline.enter("compute")
        if not self._timeline.by_operation:
            self._expect_forward(True)

    def _expect_forward(self, on: bool) -> None:
        """A hook on all modules that tells when forward begins, and is then taken off."""
        if on and self._module_hook is None:
            self._module_hook = nn_module.register_module_forward_pre_hook(self._first_module)
        elif not on and self._module_hook is not None:
            self._module_hook.remove()
            self._module_hook = None

    def _first_module(self, module: nn.Module, args: Any) -> None:
        self._expect_forward(False)
        if self._backwards == 0 and self._optimizers == 0:
            self._timeline.enter("forward")


_NO_MEMORY: dict[str, Any] = {
    "peak_bytes": 0,
    "at_peak": dict.fromkeys(CATEGORIES, 0),
    "peaks": dict.fromkeys(CATEGORIES, 0),
    "end": dict.fromkeys(CATEGORIES, 0),
    "series": [],
}


class _StepMemory:
    """What an optimizer's step needs for a moment, learnt from steps that were watched."""

    def __init__(self) -> None:
        self.extra = 0
        self._states: int | None = None
        self._learnt = self._watching = False

    def steady(self, optimizer: optim.Optimizer) -> bool:
        """Whether the next step will bring nothing new."""
        return (
            type(optimizer) in _QUIET_OPTIMIZERS
            and self._learnt
            and len(optimizer.state) == self._states
        )

    def begin(self, ledger: Ledger) -> None:
        self._watching = True
        ledger.high_water()

    def end(self, optimizer: optim.Optimizer, ledger: Ledger) -> None:
        if not self._watching:
            return
        self._watching = False
        # A step in which state came to be says little about those after it.
        self._learnt = len(optimizer.state) == self._states
        self._states = len(optimizer.state)
        self.extra = max(0, ledger.high_water() - ledger.total)
