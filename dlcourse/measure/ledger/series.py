"""Bytes by category over one cell: now, at the peak, and as a short series. Numbers only.

The total falls only when storages are freed or shrink, so it is at its highest just before that:
`Ledger` then asks `note_peak`, and not at every operation.
"""

from __future__ import annotations

from typing import Any

from dlcourse.measure.categories import CATEGORIES, OTHER, by_name

_WINDOWS = 200  # at most two points each


class Series:
    """What the storages of a rank add up to.

    Attributes:
        totals: live bytes, one number a category, in the order of `CATEGORIES`.
        total: their sum.
        peak: largest total since `reset`; `at_peak` its categories; `peaks` each one's own.
        births: storages that have come to be, ever.
        window_end: ns at which the next point of the series is due.
    """

    def __init__(self) -> None:
        self.totals = [0] * len(CATEGORIES)
        self.total = 0
        self.births = 0
        self._window_high = 0
        self.reset(0)

    def reset(self, now_ns: int) -> None:
        """Start a new cell: peaks and series begin at what is live now."""
        self._high = self.total
        self.note_peak()
        self.peaks = list(self.totals)
        self._points: list[list[int]] = [[now_ns, *self.totals]]
        self._window_ns = 1_000_000
        self._open_window(now_ns)

    # ------------------------------------------------------------------ storages come and go

    def add(self, category: int, nbytes: int) -> None:
        """A storage has come to be."""
        totals = self.totals
        self.births += 1
        totals[category] += nbytes
        self.total += nbytes
        # "other" is where storages wait until their owner is known: see `note_other`.
        if category != OTHER and totals[category] > self.peaks[category]:
            self.peaks[category] = totals[category]
        if self.total > self._high:
            self._high = self.total
        if self.total > self._window_high:
            self._window_high = self.total
            self._window_point = [0, *totals]

    def remove(self, category: int, nbytes: int) -> None:
        """A storage was freed."""
        self.totals[category] -= nbytes
        self.total -= nbytes

    def move(self, old: int, new: int, nbytes: int) -> None:
        """A storage is of another category now."""
        self.totals[old] -= nbytes
        self.totals[new] += nbytes
        self.peaks[new] = max(self.peaks[new], self.totals[new])

    def resize(self, category: int, change: int) -> None:
        """A storage has grown, or shrunk, by so many bytes."""
        self.totals[category] += change
        self.total += change
        self._high = max(self._high, self.total)
        self.peaks[category] = max(self.peaks[category], self.totals[category])

    # ------------------------------------------------------------------ peaks

    def note_peak(self) -> None:
        """The total is the largest so far."""
        self.peak = self.total
        self.at_peak = list(self.totals)
        self._births_at_peak = self.births

    def correct_peak(self, old: int, new: int, nbytes: int, birth: int) -> None:
        """A living storage turns out to be of another category than it was counted in at the peak.

        birth: what `births` was when it came to be; the peak may have been before.
        """
        if birth <= self._births_at_peak:
            self.at_peak[old] -= nbytes
            self.at_peak[new] += nbytes

    def note_other(self) -> None:
        """All owners are known that will be: what is "other" now is really that."""
        self.peaks[OTHER] = max(self.peaks[OTHER], self.totals[OTHER])

    def note_transient(self, extra: int) -> None:
        """For a moment `extra` bytes of "other" were live too, unseen."""
        if self.total + extra > self.peak:
            self.note_peak()
            self.peak += extra
            self.at_peak[OTHER] += extra
            self.peaks[OTHER] = max(self.peaks[OTHER], self.totals[OTHER] + extra)

    def high_water(self) -> int:
        """The largest total since this was last asked."""
        high, self._high = self._high, self.total
        return high

    # ------------------------------------------------------------------ over time

    def close_window(self, now_ns: int) -> None:
        """Add a point to the series (called when `window_end` has passed)."""
        # The highest moment of each window is kept, so no peak gets lost by thinning.
        self._window_point[0] = now_ns
        self._points.append(self._window_point)
        if len(self._points) >= 2 * _WINDOWS:
            self._window_ns *= 2
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [max(pair, key=lambda point: sum(point[1:])) for pair in pairs]
        self._open_window(now_ns)

    def _open_window(self, now_ns: int) -> None:
        self.window_end = now_ns + self._window_ns
        self._window_high = self.total
        self._window_point = [0, *self.totals]

    def as_record(self, now_ns: int) -> dict[str, Any]:
        """The memory part of a record."""
        if self._window_high > self.total:
            self.close_window(now_ns)
        return {
            "peak_bytes": self.peak,
            "at_peak": by_name(self.at_peak),
            "peaks": by_name(self.peaks),
            "end": by_name(self.totals),
            "series": [*self._points, [now_ns, *self.totals]],
        }
