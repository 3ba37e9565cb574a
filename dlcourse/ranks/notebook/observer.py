"""Who shows a pool to a person while it works: the engine tells, whoever has registered draws.

The engine stands below all that draws. `dlcourse/__init__.py` registers the live panel
(`dlcourse/panel/pool_panel.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from dlcourse.ranks.notebook.front_end import front_end_present, notebook_cell
from dlcourse.ranks.notebook.rank_processes import RankProcesses
from dlcourse.ranks.notebook.running_cell import RunningCell


class Observer(Protocol):
    """Is told what the ranks of one pool do. No method may block: cells wait for none of them."""

    def display(self) -> None:
        """Show the pool below the running cell; again where it was shown before."""

    def placed(self, machines: Sequence[str]) -> None:
        """The ranks are up. machines: of each rank; empty where there is only one."""

    def at_rest(self, ranks: Mapping[int, str], *, afresh: bool) -> None:
        """No cell runs. Called from any thread.

        ranks: rank -> "idle", "dead", "lost", "stopped" or "starting".
        afresh: whether these are new processes: what the ones before have measured is over.
        """

    def cell_starts(self, label: int | None) -> None:
        """label: the number that the notebook shows beside the cell, where there is one."""

    def cell_runs(self, cell: int, elapsed_s: float, ranks: Sequence[Mapping[str, Any]]) -> None:
        """ranks: "rank", "state", "collective" and the recorder's last `sample()` of each."""

    def cell_ended(
        self,
        cell: int,
        elapsed_s: float,
        outcome: str,
        records: Sequence[Mapping[str, Any]],
        ranks: Mapping[int, str],
    ) -> None:
        """A short cell is over before its first sample: its records tell what it did.

        outcome: "done", "failed" or "interrupted".
        records: of the ranks that recorded the cell.
        ranks: rank -> "idle" or "dead", all of the pool.
        """


_make: Callable[[int], Observer] | None = None


def observe_with(make: Callable[[int], Observer]) -> None:
    """Have every pool from now on observed by `make(number of ranks)`, in front of a person."""
    global _make
    _make = make


class Observation:
    """Tells the observer of one pool, if there is one, what happens to it.

    Attributes:
        observer: made at the first `show` in front of a person, where one was registered.
        shown_in: the number of the notebook's cell below which it was shown last.
    """

    def __init__(self, processes: RankProcesses) -> None:
        self.processes = processes
        self.observer: Observer | None = None
        self.shown_in: int | None = None
        processes.changed = self.at_rest

    def show(self) -> None:
        """Show the pool below the running cell, if somebody is there to see it."""
        if front_end_present():
            if self.observer is None and _make is not None:
                self.observer = _make(self.processes.size)
            if self.observer is not None:
                self.observer.display()
            self.shown_in = notebook_cell()

    def started(self) -> None:
        """The ranks are up: what an earlier life of them has measured is over."""
        if self.observer is None:
            self.show()
        if self.observer is not None:
            self.observer.placed(self.processes.machine_names())
        self.at_rest(afresh=True)

    def at_rest(self, died: Iterable[int] = (), *, afresh: bool = False) -> None:
        """Show the state of the ranks while no cell runs."""
        if self.observer is not None:
            state = self.processes.state
            died = set(died) | set(self.processes.dead)
            # Where one died, the others were ended; where none did, nothing is known of them.
            alive = {"ready": "idle", "lost": "stopped" if died else "lost"}.get(state, state)
            ranks = {r: "dead" if r in died else alive for r in range(self.processes.size)}
            self.observer.at_rest(ranks, afresh=afresh)

    def cell_starts(self) -> None:
        if self.observer is not None:
            self.observer.cell_starts(notebook_cell())

    def running(self, cell: RunningCell) -> None:
        """Show the last samples of the ranks, and ask for new ones; they answer at any time."""
        if self.observer is not None:
            for rank in cell.pending():
                self.processes.send(rank, "sample")
            elapsed_s = time.monotonic() - cell.started
            self.observer.cell_runs(cell.number, elapsed_s, cell.last_samples())

    def cell_ended(self, cell: RunningCell, records: list[dict[str, Any]], outcome: str) -> None:
        """Show what a cell moved and used."""
        if self.observer is not None:
            outcome = "interrupted" if cell.interrupted else outcome
            elapsed_s = time.monotonic() - cell.started
            dead = self.processes.dead
            states = {r: "dead" if r in dead else "idle" for r in range(self.processes.size)}
            self.observer.cell_ended(cell.number, elapsed_s, outcome, records, states)
