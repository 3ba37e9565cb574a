"""`ranks["name"]`: a name's value in every rank, however long the ranks take to pack it."""

from __future__ import annotations

import math
import time
from typing import Any

from dlcourse.ranks.diagnosis.report import exit_reason, named
from dlcourse.ranks.errors import RankError, RanksInterrupted
from dlcourse.ranks.notebook import stop
from dlcourse.ranks.notebook.rank_processes import RankProcesses
from dlcourse.words.strings import both, t

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
        dead = dict(processes.dead)
        processes.end("lost")
        raise RankError(both(lambda: _died(dead, name)))
    return answers


def _give_up(processes: RankProcesses, name: str, answers: dict[int, dict[str, Any]]) -> str:
    """Get the ranks back that still pack a value; returns what is to be said."""
    silent = sorted(set(range(processes.size)) - set(answers))
    for rank in silent:
        processes.send(rank, "interrupt", id=processes.asked)
    limit = time.monotonic() + STOP_LIMIT
    while set(silent) - set(answers) and time.monotonic() < limit:
        processes.collect(processes.asked, answers)
    words = t("ranks.interrupted")
    if silent:
        words += ": " + t("ranks.not_sent", ranks=named(silent), name=name)
    if set(silent) - set(answers):
        processes.end("lost")
        words += "\n" + t("ranks.afresh")
    return words


def _died(dead: dict[int, int | None], name: str) -> str:
    """Which ranks ended, and what was not sent because of it."""
    ended = [
        t("ranks.ended", ranks=named([rank]), reason=exit_reason(status))
        for rank, status in sorted(dead.items())
    ]
    what = "; ".join(ended) or t("ranks.watcher_ended")
    return t("ranks.ended_before_sent", ended=what, name=name) + "\n" + t("ranks.afresh")
