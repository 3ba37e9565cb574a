"""`ranks["name"]`: a name's value in every rank, however long the ranks take to pack it."""

from __future__ import annotations

import math
import time
from typing import Any

from dlcourse.ranks.diagnosis.report import exit_reason
from dlcourse.ranks.display import label
from dlcourse.ranks.errors import RankError, RanksInterrupted
from dlcourse.ranks.notebook import stop
from dlcourse.ranks.notebook.rank_processes import RankProcesses

STOP_LIMIT = 5.0  # seconds for ranks to leave the packing of a value


def fetch(processes: RankProcesses, name: str) -> dict[int, dict[str, Any]]:
    """What every rank answers about a name: its packed "value", "missing", or an "error".

    Raises:
        RankError: if a rank died.
        RanksInterrupted: for a Stop.
    """
    answers: dict[int, dict[str, Any]] = {}
    with stop.DelayedStop() as stops:
        try:
            processes.ask("value", limit=math.inf, answers=answers, name=name)
        except KeyboardInterrupt:
            stops.ignore()
            raise RanksInterrupted(_give_up(processes, name, answers)) from None
    if processes.dead or len(answers) < processes.size:
        died = [f"rank {r} {exit_reason(status)}" for r, status in sorted(processes.dead.items())]
        what = "; ".join(died) or "the process that watches the ranks ended, and they with it,"
        processes.end("lost")
        raise RankError(
            f"{what} before all ranks had sent {name}.\n"
            "The next cell starts the ranks afresh; their variables are lost."
        )
    return answers


def _give_up(processes: RankProcesses, name: str, answers: dict[int, dict[str, Any]]) -> str:
    """Get the ranks back that still pack a value; returns what is to be said."""
    silent = sorted(set(range(processes.size)) - set(answers))
    for rank in silent:
        processes.send(rank, "interrupt", id=processes.asked)
    limit = time.monotonic() + STOP_LIMIT
    while set(silent) - set(answers) and time.monotonic() < limit:
        processes.collect(processes.asked, answers)
    words = f"interrupted: {label(silent)} had not sent {name} yet." if silent else "interrupted"
    if set(silent) - set(answers):
        processes.end("lost")
        words += "\nThe next cell starts the ranks afresh; their variables are lost."
    return words
