"""The live panel of a pool: turns what the engine tells its observer into states of the panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlcourse.panel.summary import last_state
from dlcourse.panel.widget import Panel
from dlcourse.ranks.notebook.observer import observe_with


class PoolPanel(Panel):
    """A panel that observes a pool (see `dlcourse.ranks.notebook.observer.Observer`)."""

    def placed(self, machines: Sequence[str]) -> None:
        self.machines = machines

    def at_rest(self, ranks: Mapping[int, str], *, afresh: bool) -> None:
        states = [{"rank": rank, "state": state} for rank, state in ranks.items()]
        self.update({"busy": False, "ranks": states} | ({"cell": 0} if afresh else {}))

    def cell_starts(self, label: int | None) -> None:
        self.next_label = label

    def cell_runs(self, cell: int, elapsed_s: float, ranks: Sequence[Mapping[str, Any]]) -> None:
        self.update({"cell": cell, "busy": True, "elapsed_s": elapsed_s, "ranks": ranks})

    def cell_ended(
        self,
        cell: int,
        elapsed_s: float,
        outcome: str,
        records: Sequence[Mapping[str, Any]],
        ranks: Mapping[int, str],
    ) -> None:
        state = last_state(cell, elapsed_s, records) | {"outcome": outcome}
        # A rank that recorded nothing (--fast, or not chosen) has its row all the same.
        silent = set(ranks) - {rank["rank"] for rank in state["ranks"]}
        state["ranks"] += [
            {"rank": r, "state": ranks[r], "collective": None} for r in sorted(silent)
        ]
        self.update(state)


def register() -> None:
    """Show a live panel of every pool that is made in front of a person from now on."""
    observe_with(PoolPanel)
