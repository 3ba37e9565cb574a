"""What is known of the ranks in a cell, gathered from the states that a pool sends.

A state alone does not tell peaks, how long a rank has waited, or how many tokens went by in the
last seconds; nor what a cell had measured that is over.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any

from dlcourse.measure.categories import CATEGORIES

RATE_WINDOW_S = 3.0  # tokens per second are counted over the last seconds
NOTHING_BYTES = 1024  # a cell whose ranks hold no more than this anew has measured nothing

_CELL = ("cell", "label", "elapsed", "known", "peaks", "tokens_at", "outcome")  # kept of a cell


def last_state(cell: int, elapsed_s: float, records: Iterable[Mapping[str, Any]]) -> dict:
    """The state at the end of a cell, from what its ranks recorded.

    A short cell is over before the first sample; its records still tell its bytes and peaks.
    """
    ranks = []
    for record in records:
        moved: dict[str, int] = {}
        calls: dict[str, int] = {}
        for call in [*record["comm"], *record.get("comm_rest", [])]:
            moved[call["op"]] = moved.get(call["op"], 0) + call["bytes"]
            calls[call["op"]] = calls.get(call["op"], 0) + call.get("calls", 1)
        steps = record["steps"]
        ranks.append(
            {
                "rank": record["rank"],
                "state": "idle",
                "collective": None,
                "memory": record["memory"]["end"],
                "peak_bytes": record["memory"]["peak_bytes"],
                "pss_bytes": record.get("pss_bytes"),
                "comm_bytes": moved,
                "comm_calls": calls,
                "tokens": sum(step["tokens"] or 0 for step in steps),
                "steps": len(steps),
                "loss": steps[-1]["loss"] if steps else None,
            }
        )
    return {"cell": cell, "busy": False, "elapsed_s": elapsed_s, "ranks": ranks}


class Summary:
    """The ranks of one pool, in the cell that runs or ran last.

    Attributes:
        known: rank -> what its states have said in this cell, the newest of each.
        measured: the last cell that measured something, as it ended; shown again after one that
            did not.
    """

    def __init__(self) -> None:
        self.held: dict[int, int] = {}  # bytes of tensors in each rank when the last cell ended
        self.measured: dict[str, Any] = {}  # the last cell that measured something, as it ended
        self._new_cell(None)

    def _new_cell(self, cell: int | None, label: int | None = None) -> None:
        self.cell = cell
        self.busy, self.elapsed, self.outcome = False, 0.0, "done"
        self.label = label
        self.known: dict[int, dict] = {}
        self.peaks: dict[int, int] = {}
        self.waiting_since: dict[int, tuple[str, float]] = {}
        self.tokens_at: deque[tuple[float, int]] = deque([(0.0, 0)])

    def note(self, state: dict, label: int | None = None) -> None:
        """Take in a state, whether or not it will be drawn; `label` is a new cell's."""
        ended = self.busy or state.get("cell", self.cell) != self.cell
        if state.get("cell", self.cell) != self.cell:
            self._new_cell(state["cell"], label)
            if not self.cell:  # new ranks: nothing is left of what the old ones held
                self.held, self.measured = {}, {}
        self.busy = bool(state.get("busy"))
        self.elapsed = float(state.get("elapsed_s") or self.elapsed)
        self.outcome = state.get("outcome") or self.outcome
        # A rank that says nothing new about itself still has what it had.
        for rank in state.get("ranks") or []:
            self.known[rank["rank"]] = {**self.known.get(rank["rank"], {}), **rank}
        if ended and not self.busy and self.elapsed:
            self._end_cell()

    def _end_cell(self) -> None:
        """Keep a cell that measured something; go back to the kept one after one that did not."""
        now = self.known
        measured = self._has_measured()
        self.held |= {number: _bytes(rank) for number, rank in now.items() if "memory" in rank}
        if measured and self.outcome != "failed":
            self.measured = {name: copy(getattr(self, name)) for name in _CELL}
        elif not measured and self.outcome == "done" and self.measured:
            vars(self).update({name: copy(value) for name, value in self.measured.items()})
            for number, rank in self.known.items():
                state = now.get(number, {}).get("state", "idle")
                self.known[number] = {**rank, "state": state, "collective": None}

    def _has_measured(self) -> bool:
        """Whether the cell communicated, marked steps, or changed what its ranks hold."""
        for number, rank in self.known.items():
            if rank.get("comm_calls") or rank.get("comm_bytes") or rank.get("steps"):
                return True
            if "memory" not in rank:
                continue
            before, after = self.held.get(number, 0), _bytes(rank)
            if max(self.peak(rank) - before, before - after) > NOTHING_BYTES:
                return True
        return False

    # ------------------------------------------------------------------ over several states

    def peak(self, rank: Mapping[str, Any]) -> int:
        """Largest bytes of a rank's tensors in this cell, as far as states have told."""
        number = rank["rank"]
        peak = max(self.peaks.get(number, 0), _bytes(rank), rank.get("peak_bytes") or 0)
        self.peaks[number] = peak
        return peak

    def waited(self, rank: Mapping[str, Any]) -> tuple[str, float] | None:
        """The collective that the rank is in and the seconds it has been there."""
        where, number = rank.get("collective"), rank["rank"]
        if not where or rank.get("state") != "waiting":
            self.waiting_since.pop(number, None)
            return None
        now, began = time.monotonic(), None
        if isinstance(where, dict):
            began = where.get("since_ns")
            began = began / 1e9 if began is not None else None
            where = f"{where['op']} #{where['seq']}"
        if began is None or not 0 <= now - began < 86_400:  # another machine, another clock
            known = self.waiting_since.get(number)
            began = known[1] if known and known[0] == where else now
        self.waiting_since[number] = (where, began)
        return where, now - began

    def tokens_per_s(self) -> float | None:
        """Of the last seconds; at a cell's end of all of it. None: no rank has reported any."""
        tokens = sum(rank.get("tokens") or 0 for rank in self.known.values())
        if not tokens:
            return None
        elapsed = self.elapsed
        while len(self.tokens_at) > 1 and self.tokens_at[1][0] <= elapsed - RATE_WINDOW_S:
            self.tokens_at.popleft()
        began, before = self.tokens_at[0] if self.busy else (0.0, 0)
        if elapsed > self.tokens_at[-1][0]:
            self.tokens_at.append((elapsed, tokens))
        return (tokens - before) / (elapsed - began) if elapsed > began else None


def _bytes(rank: Mapping[str, Any]) -> int:
    return sum(int((rank.get("memory") or {}).get(name, 0)) for name in CATEGORIES)
