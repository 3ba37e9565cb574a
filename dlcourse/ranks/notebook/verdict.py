"""What is said of a cell that has ended, or that was got back: one message for all ranks."""

from __future__ import annotations

from typing import Any

from dlcourse import machine
from dlcourse.ranks.diagnosis.mismatch import find_mismatch, uneven_progress
from dlcourse.ranks.diagnosis.report import exit_reason, report, timed_out
from dlcourse.ranks.display import label
from dlcourse.ranks.errors import RankError, RanksInterrupted
from dlcourse.ranks.notebook.running_cell import RunningCell

ADVICE = (
    "All ranks of a group must make the same calls, in the same order, with tensors of the same "
    "shape and type; every send needs a receive."
)


def judge(cell: RunningCell) -> None:
    """Raise what went wrong, after putting the pool in order; return if nothing did."""
    processes = cell.processes
    errors = {r: d["error"] for r, d in cell.done.items() if "error" in d}
    if len(cell.done) == len(cell.chosen) and not errors and not cell.interrupted:
        _check_progress(cell)
        return
    lost = bool(processes.dead) or bool(cell.pending()) or not processes.alive()
    lines = message(cell, errors)
    broken = any(e["group_broken"] for e in errors.values()) or uneven_progress(cell.known_states())
    if not lost and broken:
        lost = not processes.regroup()
        if not lost:
            lines.append(
                "The ranks keep their variables; their process group was made anew "
                "(wrap models and make sub-groups again)."
            )
    if lost:
        processes.end("lost")
        lines.append("The next cell starts the ranks afresh; their variables are lost.")
    text = "\n".join(lines)
    if cell.interrupted:
        raise RanksInterrupted(text)
    raise RankError(text, errors)


def _check_progress(cell: RunningCell) -> None:
    """After a cell that every rank finished: are they still in step with each other?"""
    if len(cell.chosen) < cell.processes.size:
        return  # cells for some ranks come in pairs; judged when all take part
    sentence = uneven_progress(cell.known_states())
    if sentence is None:
        return
    lines = [sentence, *report(cell.known_states()), ADVICE]
    if cell.processes.regroup():
        lines.append("The ranks keep their variables; their process group was made anew.")
    else:
        cell.processes.end("lost")
        lines.append("The next cell starts the ranks afresh; their variables are lost.")
    raise RankError("\n".join(lines))


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
        oom = machine.out_of_memory_kills() > processes.oom_kills
        headline = f"rank {rank} {exit_reason(processes.dead[rank], out_of_memory=oom)}"
        if (mismatch := find_mismatch(cell.known_states())) is not None:
            headline += f" after {mismatch}"
    elif cell.headline is not None and not own:
        headline = cell.headline
    elif own and all(timed_out(e) for e in own.values()):
        headline = (
            f"{label(sorted(own))} gave up after {processes.timeout:g} s, the time-out of a wait. "
            f"If the others are only slow, give more time: "
            f"Ranks({processes.size}, timeout={4 * processes.timeout:g})"
        )
    elif own:
        groups: dict[str, list[int]] = {}
        for rank, error in sorted(own.items()):
            groups.setdefault(f"{error['type']}: {error['message']}", []).append(rank)
        headline = "; ".join(f"{label(ranks)} raised {text}" for text, ranks in groups.items())
    elif cell.interrupted:
        headline = "interrupted"
    else:
        headline = f"{label(cell.pending())} did not end"
    if cell.interrupted and headline != "interrupted":
        headline = f"interrupted: {headline}"
    lines = [headline, *report(cell.known_states())]
    if cell.headline is not None and not own and not cell.interrupted:
        lines.append(ADVICE)
    if own:
        first = min(own)
        lines += ["", f"Traceback of rank {first}:", own[first]["traceback"].rstrip()]
    return lines
