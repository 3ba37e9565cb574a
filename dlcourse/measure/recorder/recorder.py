"""The recorder of one rank: everything that a cell did, seen from inside.

    recorder = Recorder(rank, world_size)      # once, when the rank starts
    recorder.start(); ...the cell...; record = recorder.stop()

and in the cell, at the end of each training step, `mark_step(tokens=..., loss=...)`.

Collectives come from kernels on torch's c10d operators (`collective_calls`), phases from torch's
hooks (`phases`, `spans`), storages and FLOPs from a `TorchDispatchMode` that looks at every
operator (`dispatch_mode`, `ledger`). That mode is what costs time. So it does as little as it
can, and it steps aside while an optimizer of torch's own steps (`optimizer_steps`).

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
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dlcourse.measure.categories import CATEGORIES
from dlcourse.measure.ledger import Ledger
from dlcourse.measure.network_counters import network_bytes, network_bytes_since
from dlcourse.measure.process_memory import CachedPss
from dlcourse.measure.recorder.clock import Mark, Marks, clock
from dlcourse.measure.recorder.collective_calls import CollectiveCalls
from dlcourse.measure.recorder.dispatch_mode import Watch
from dlcourse.measure.recorder.phases import Phases
from dlcourse.measure.recorder.spans import Spans

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
    recorder = Recorder(0, 1)
    recorder.start()
    return recorder.stop()["memory"]["end"]


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

    record: dict[str, Any]  # of the last cell that ended

    def __init__(self, rank: int, world_size: int, ledger: bool = True) -> None:
        self.rank, self.world_size = rank, world_size
        self.active = False
        self.ledger = Ledger() if ledger else None
        self._marks = Marks()
        self._spans = Spans(self._marks)
        self._watch = Watch(self.ledger, self._spans) if self.ledger else None
        self._phases = Phases(self._spans, self._watch)
        self.collectives = CollectiveCalls(
            self._marks,
            blocked=self._spans.blocked,
            handed=self.ledger.storages.communicate if self.ledger else None,
            starting=self._phases.collective_starts,
            mine=self._phases.is_worker,
        )
        if self._watch is not None:
            self._watch.fake_collective = self.collectives.fake
        self._pss = CachedPss()
        self._host = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
        self._reset()

    def _reset(self) -> None:
        self._steps: list[dict[str, Any]] = []
        self._step_start: Mark = None
        self._tokens = 0
        self._loss: float | None = None

    # ------------------------------------------------------------------ start and stop

    def start(self) -> None:
        """Begin to record. What an earlier `start` without `stop` recorded is thrown away."""
        global _current
        if self.active:
            self.stop()
        self._reset()
        self._outer, _current = _current, self
        self.active = True
        self._start_ns, self._network = clock(), None
        self._marks.start()
        self._spans.reset(by_operation=self.ledger is not None and not self._marks.cuda)
        self.collectives.reset()
        self.collectives.start()
        self._phases.install()
        if self.ledger is not None:
            self.ledger.start(torch._guards.active_fake_mode())
        self._network = network_bytes()
        self._start_ns = clock()
        if self.ledger is not None and self._watch is not None:
            self.ledger.begin(self._start_ns)
            self._watch.__enter__()
        if self._spans.by_operation:
            self._spans.enter("compute")
        else:
            self._phases.expect_forward(True)

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
        self._phases.remove()
        self.collectives.stop()
        self.active = False
        _current, self._outer = self._outer, None
        when = self._marks.resolve
        self.record = {
            "rank": self.rank,
            "world_size": self.world_size,
            "host": self._host,
            "wall_s": (end - self._start_ns) / 1e9,
            "start_ns": self._start_ns,
            "comm": [event.as_dict(self._marks) for event in self.collectives.events],
            "comm_rest": list(self.collectives.rest.values()),
            "memory": _NO_MEMORY if self.ledger is None else self.ledger.finish(end),
            "spans": self._spans.finish(),
            "steps": [
                step | {"start_ns": when(step["start_ns"]), "end_ns": when(step["end_ns"])}
                for step in self._steps
            ],
            "flops": 0 if self._watch is None else self._watch.flops,
            "pss_bytes": self._pss.read(),
            "wire": network_bytes_since(self._network),
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
        idle = self._spans.by_operation and self._watch is not None and not self._watch.busy
        if event is None and idle and clock() - self._spans.end > _BLOCKED_NS:
            # C++ code waits unseen: no operator for a while, and a collective under way.
            event = next(iter(list(self.collectives.pending.values())), None)
        if event is None:
            return None
        return {"op": event.call.op, "seq": event.seq, "since_ns": event.issued_ns}

    def mark_step(self, tokens: int = 0, loss: float | Tensor | None = None) -> None:
        """See the function of the same name."""
        if isinstance(loss, Tensor):
            loss = None if isinstance(loss, FakeTensor) or loss.is_meta else loss.item()
        now = self._marks.now()
        start = self._step_start
        if start is None:  # the first step begins with its forward pass, not with the cell
            first = self._spans.first_forward
            start = self._start_ns if first is None else first
        self._step_start = now
        self._tokens += int(tokens)
        self._loss = None if loss is None else float(loss)
        self._steps.append(
            {"start_ns": start, "end_ns": now, "tokens": int(tokens), "loss": self._loss}
        )
        if self._spans.phase == "forward":
            self._spans.enter("compute")
        if self.ledger is not None:
            self.ledger.owners.resolve(optimizers=False)
        if not self._spans.by_operation:
            self._phases.expect_forward(True)


_NO_MEMORY: dict[str, Any] = {
    "peak_bytes": 0,
    "at_peak": dict.fromkeys(CATEGORIES, 0),
    "peaks": dict.fromkeys(CATEGORIES, 0),
    "end": dict.fromkeys(CATEGORIES, 0),
    "series": [],
}
