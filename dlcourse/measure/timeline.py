"""What the rank's own work was at each moment: forward, backward, optimizer, other compute.

The phases come from three places that a training step cannot avoid:

- backward: the one Python function through which torch enters its autograd engine. It is
  replaced while a cell is recorded. Hooks on the graph would need a tensor of each graph.
- optimizer: torch's hooks before and after every `Optimizer.step`.
- forward: outside those two, from the first operation that autograd tracks (with the ledger)
  or the first call of an `nn.Module` (without it).

Time in which the rank is blocked in `Work.wait()` is not its own work and is cut out. DDP waits
in C++ when all gradients are there, where no such call is seen: a callback that the autograd
engine runs just before tells when that begins.

On a GPU, Python only queues work. So there the edges are CUDA events on the current stream,
and are turned into times when the cell has ended.
"""

from __future__ import annotations

import time
from typing import Any

import torch

clock = time.monotonic_ns
Mark = Any  # int (ns), or a torch.cuda.Event until `Marks.resolve`

# No operation for this long: the rank sleeps, or reads data. Not less: where ranks outnumber
# cores, the system takes the core away from a working rank for several milliseconds.
GAP_NS = 20_000_000
_MAX_SPANS = 6_000


class Marks:
    """Moments, on the host's clock or on the GPU's."""

    def __init__(self) -> None:
        self.cuda = False

    def start(self) -> None:
        """Use CUDA events if this process has a CUDA context; tie them to the host's clock."""
        self.cuda = torch.cuda.is_initialized()
        if self.cuda:
            self._base = torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            self._base.record()
            self._base.synchronize()
            self._base_ns = clock()

    def now(self) -> Mark:
        """This moment in the order of the current stream's work."""
        if not self.cuda:
            return clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def resolve(self, mark: Mark) -> int:
        """The moment in nanoseconds of the monotonic clock. Waits for the GPU if needed."""
        if mark is None or isinstance(mark, int):
            return mark
        mark.synchronize()
        return self._base_ns + int(self._base.elapsed_time(mark) * 1e6)


class Timeline:
    """Spans of the rank's own work.

    Two ways to feed it. `begin_work`/`end_work` around every operation (the recorder with a
    ledger, on CPU): spans end with the last operation. Otherwise a phase lasts until the next.

    Attributes:
        phase: "forward", "backward", "optimizer" or "compute".
        end: ns at which the last operation ended.
    """

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.reset()

    def reset(self, by_operation: bool = False) -> None:
        """Start a new cell."""
        self.by_operation = by_operation
        self._spans: list[tuple[Mark, Mark, str]] = []
        self.phase = "compute"
        self.end = 0
        self._start: Mark = None  # None: nothing to do yet, so no span
        self.first_forward: Mark = None

    def enter(self, phase: str) -> None:
        """The rank's work is now of another kind."""
        if phase == self.phase and self._start is not None:
            return
        now = self.marks.now()
        self._close(now)
        self._start = None
        self.phase = phase
        self._start = now
        self.end = now if isinstance(now, int) else 0
        if phase == "forward" and self.first_forward is None:
            self.first_forward = now

    def split(self, now: Mark) -> None:
        """The rank was idle or blocked until now."""
        self._close(now)
        self._start = now

    def blocked(self, since: Mark, until: Mark) -> None:
        """The rank waited in a collective between these moments."""
        if self._start is None:
            return
        if not self.by_operation:
            self._close(since)
        else:
            self._close(None)
            self.end = until
        self._start = until

    def drained(self) -> None:
        """Backward has no work of its own left; the engine's other callbacks may wait now."""
        self._close(self.marks.now())
        self._start = None

    def _close(self, now: Mark) -> None:
        if self._start is None:
            return
        end = self.end if self.by_operation and not self.marks.cuda else now
        if self.marks.cuda or end > self._start:
            self._spans.append((self._start, end, self.phase))

    def finish(self) -> list[list[Any]]:
        """[[start_ns, end_ns, phase, ""], ...], not overlapping, in order."""
        if self.phase != "compute" or self.by_operation:
            self._close(self.marks.now())
        self._start = None
        spans = [(self.marks.resolve(a), self.marks.resolve(b), p) for a, b, p in self._spans]
        spans = sorted(s for s in spans if s[1] > s[0])
        gap = 0
        while len(spans) > _MAX_SPANS:  # join neighbours, the closest first
            gap = max(20_000, gap * 2)
            joined = spans[:1]
            for span in spans[1:]:
                last = joined[-1]
                if span[2] == last[2] and span[0] - last[1] <= gap:
                    joined[-1] = (last[0], span[1], last[2])
                else:
                    joined.append(span)
            spans = joined
            if gap > 1e12:
                break
        return [[a, b, p, ""] for a, b, p in spans]
