"""Who shows a pool to a person while it works: the engine tells, whoever has registered draws.

The engine stands below all that draws. `dlcourse/__init__.py` registers the live panel
(`dlcourse/panel/pool_panel.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class Observer(Protocol):
    """Is told what the ranks of one pool do. No method may block: cells wait for none of them."""

    def display(self) -> None:
        """Show the pool below the running cell; again where it was shown before."""

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


def new_observer(size: int) -> Observer | None:
    """The observer of a new pool; None where nobody has registered one."""
    return None if _make is None else _make(size)
