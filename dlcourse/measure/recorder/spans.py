"""Spans of the rank's own work: forward, backward, optimizer, other compute.

Time in which the rank is blocked in `Work.wait()` is not its own work and is cut out. `phases`
says when which kind of work begins.
"""

from __future__ import annotations

from typing import Any

from dlcourse.measure.recorder.clock import Mark, Marks

# No operation for this long: the rank sleeps, or reads data. Not less: where ranks outnumber
# cores, the system takes the core away from a working rank for several milliseconds.
GAP_NS = 20_000_000
_MAX_SPANS = 6_000


class Spans:
    """Spans of the rank's own work.

    With a ledger on the CPU the dispatch mode says when each operation ended (`end`), and a span
    ends with its last operation. Otherwise a phase lasts until the next.

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
        return [[a, b, p, ""] for a, b, p in _at_most(sorted(s for s in spans if s[1] > s[0]))]


def _at_most(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """`_MAX_SPANS` spans: neighbours of one phase are joined, the closest first."""
    gap = 0
    while len(spans) > _MAX_SPANS and gap <= 1e12:
        gap = max(20_000, gap * 2)
        joined = spans[:1]
        for span in spans[1:]:
            last = joined[-1]
            if span[2] == last[2] and span[0] - last[1] <= gap:
                joined[-1] = (last[0], span[1], last[2])
            else:
                joined.append(span)
        spans = joined
    return spans
