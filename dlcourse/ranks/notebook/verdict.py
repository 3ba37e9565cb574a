"""What is said of a cell that has ended, or that was got back: one message for all ranks."""

from __future__ import annotations

from typing import Any

from dlcourse import machine
from dlcourse.ranks.diagnosis.mismatch import find_mismatch, uneven_progress
from dlcourse.ranks.diagnosis.report import (
    MACHINE_LOST,
    exit_reason,
    named,
    on_machines,
    report,
    timed_out,
)
from dlcourse.ranks.diagnosis.state import RankState
from dlcourse.ranks.display import fold
from dlcourse.ranks.errors import RankError, RanksInterrupted
from dlcourse.ranks.notebook.rank_processes import RankProcesses
from dlcourse.ranks.notebook.running_cell import RunningCell
from dlcourse.words.strings import Both, both, language, t


def judge(cell: RunningCell) -> None:
    """Raise what went wrong, after putting the pool in order; return if nothing did."""
    processes = cell.processes
    errors = {r: d["error"] for r, d in cell.done.items() if "error" in d}
    if len(cell.done) == len(cell.chosen) and not errors and not cell.interrupted:
        _check_progress(cell)
        return
    lost = bool(processes.dead) or bool(cell.pending()) or not processes.alive()
    said = both(lambda: "\n".join(message(cell, errors)))
    after = None
    broken = any(e["group_broken"] for e in errors.values()) or uneven_progress(cell.known_states())
    if not lost and broken:
        lost = not processes.regroup()
        after = "ranks.kept_wrap"
    if lost and not cell.ended_by_another():
        processes.end("lost")
        after = "ranks.job_over" if processes.agent.lost else "ranks.afresh"
    text = both(lambda: _joined(said, after))
    if cell.interrupted:
        raise RanksInterrupted(text)
    raise RankError(text, errors)


def _check_progress(cell: RunningCell) -> None:
    """After a cell that every rank finished: are they still in step with each other?"""
    if len(cell.chosen) < cell.processes.size:
        return  # cells for some ranks come in pairs; judged when all take part
    states = cell.known_states()
    if uneven_progress(states) is None:
        return
    said = both(lambda: "\n".join(_uneven_message(states)))
    after = "ranks.kept"
    if not cell.processes.regroup():
        cell.processes.end("lost")
        after = "ranks.afresh"
    raise RankError(both(lambda: _joined(said, after)))


def _uneven_message(states: list[RankState]) -> list[str]:
    return [uneven_progress(states) or "", *report(states), t("ranks.advice")]


def _joined(said: Both, after: str | None) -> str:
    """A message and what comes after it, in the language in use."""
    lines = [said.english if language() == "en" else said]
    return "\n".join([*lines, t(after)] if after else lines)


def between_cells(processes: RankProcesses) -> str:
    """Which ranks died while no cell ran, and how."""
    if not processes.dead:
        return t("ranks.watcher_ended_before")
    died = fold({rank: _exit_reason(processes, rank) for rank in sorted(processes.dead)})
    with on_machines(processes.machine_names()):
        words = "; ".join(
            _ended(ranks, reason.replace("was ", "were ") if len(ranks) > 1 else reason)
            for ranks, reason in died
        )
    return t("ranks.between", words=words)


def _ended(ranks: list[int], reason: str) -> str:
    return t("ranks.ended", ranks=named(ranks), reason=reason)


def _exit_reason(processes: RankProcesses, rank: int) -> str:
    oom = machine.out_of_memory_kills() > processes.oom_kills
    return exit_reason(processes.dead[rank], out_of_memory=oom)


def message(cell: RunningCell, errors: dict[int, dict[str, Any]]) -> list[str]:
    """The headline, a line for each rank, and the traceback of the first that failed."""
    processes = cell.processes
    raised = {r: e for r, e in errors.items() if not (e["interrupted"] or e["cut"])}
    # A lost connection is the consequence of another rank's end, where there is one.
    own = {r: e for r, e in raised.items() if not e["transport"]}
    # Nor is it a cause where connections were cut from here: a rank may lose its peers' before
    # its own are cut. And where a rank gave up, the others lost it because it did.
    if not own and not processes.dead and cell.headline is None and not cell.interrupted:
        own = {r: e for r, e in raised.items() if timed_out(e)} or raised
    if processes.dead:
        rank = min(processes.dead)
        headline = _ended([rank], _exit_reason(processes, rank))
        if together := [r for r in processes.dead if processes.dead[r] == MACHINE_LOST]:
            with on_machines(processes.machine_names()):
                headline = _ended(together, _exit_reason(processes, together[0]))
        if (mismatch := find_mismatch(cell.known_states())) is not None:
            headline = t("ranks.ended_after", ended=headline, mismatch=mismatch)
    elif cell.headline is not None and not own:
        headline = cell.headline.english if language() == "en" else cell.headline
    elif own and all(timed_out(e) for e in own.values()):
        more = f"Ranks({processes.size}, timeout={4 * processes.timeout:g})"
        seconds = f"{processes.timeout:g}"
        headline = t("ranks.time_out", ranks=named(sorted(own)), seconds=seconds, more=more)
    elif own:
        groups: dict[str, list[int]] = {}
        for rank, error in sorted(own.items()):
            groups.setdefault(f"{error['type']}: {error['message']}", []).append(rank)
        parts = (t("ranks.raised", ranks=named(r), error=text) for text, r in groups.items())
        headline = "; ".join(parts)
    elif cell.interrupted:
        headline = t("ranks.interrupted")
    else:
        headline = t("ranks.not_ended", ranks=named(cell.pending()))
    if cell.interrupted and headline != t("ranks.interrupted"):
        headline = f"{t('ranks.interrupted')}: {headline}"
    # The headline is the same wherever the ranks are; the lines below say on which machine.
    with on_machines(processes.machine_names()):
        lines = [headline, *report(cell.known_states())]
    if cell.headline is not None and not own and not cell.interrupted:
        lines.append(t("ranks.advice"))
    if own:
        first = min(own)
        lines += ["", t("ranks.traceback", ranks=named([first])), own[first]["traceback"].rstrip()]
    return lines
