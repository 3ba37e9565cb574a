"""Say in words why a cell did not end: which rank, which collective, which line.

Works on plain data that the ranks sent, so that it can be read and tested without processes.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from math import prod
from typing import Any

from dlcourse.ranks.display import fold, label, ranges

_DTYPES = {
    "Float": ("float32", 4),
    "Double": ("float64", 8),
    "Half": ("float16", 2),
    "BFloat16": ("bfloat16", 2),
    "Long": ("int64", 8),
    "Int": ("int32", 4),
    "Short": ("int16", 2),
    "Char": ("int8", 1),
    "Byte": ("uint8", 1),
    "Bool": ("bool", 1),
    "ComplexFloat": ("complex64", 8),
}


WORLD = "world"  # the group of all ranks


@dataclass
class State:
    """What is known of one rank when a cell is judged."""

    rank: int
    kind: str  # "done", "failed", "dead", "running"
    failure: dict[str, Any] | None = None  # of a failed rank
    where: dict[str, Any] | None = None  # of a running rank
    status: int | None = None  # wait status of a dead rank
    last_words: tuple[str, ...] = ()
    collectives: dict[str, list[dict[str, Any]]] | None = None

    def progress(self, group: str) -> int | None:
        """The number of the last collective that this rank started in a group; None: unknown."""
        entries = (self.collectives or {}).get(group)
        if entries:
            return entries[-1]["seq"]
        return 0 if entries is None and self.kind != "dead" else None

    def waiting(self) -> tuple[str, dict[str, Any]] | None:
        """The group and the collective that a rank waits in, or waited in when it was looked at."""
        if not self.where:
            return None
        for group, entries in self.where["collectives"].items():
            for entry in entries:
                if not entry["done"]:
                    return group, entry
        return None

    def blocked(self) -> bool:
        """Whether a running rank stands in communication rather than computing."""
        if self.kind != "running" or not self.where:
            return False
        return self.where["call"] is not None or self.waiting() is not None

    def entry(self, group: str, seq: int) -> dict[str, Any] | None:
        """The collective with a number, if this rank still remembers it."""
        for entry in (self.collectives or {}).get(group, []):
            if entry["seq"] == seq:
                return entry
        return None


def describe_entry(entry: dict[str, Any], *, number: bool = True) -> str:
    """ "all_reduce #3 (float32 [4], 16 bytes)"."""
    parts, size = [], 0
    for shape, dtype in zip(entry["shapes"], entry["dtypes"], strict=False):
        name, width = _DTYPES.get(dtype, (dtype.lower(), 0))
        parts.append(f"{name} {shape}")
        size += width * prod(shape)
    inside = ", ".join([*parts, f"{size:,} bytes"]) if parts else "no tensor"
    return f"{entry['op']}{' #' + str(entry['seq']) if number else ''} ({inside})"


def exit_reason(status: int | None, *, out_of_memory: bool = False) -> str:
    """A wait status in words."""
    if status is None:
        return "ended (no exit status is known)"
    if status & 0x7F:
        name = signal.Signals(status & 0x7F).name
        if name == "SIGKILL":
            why = "memory ran out" if out_of_memory else "from outside, or memory ran out"
            return f"was killed by SIGKILL ({why})"
        return f"was ended by {name}"
    return f"left with exit code {status >> 8}"


def find_mismatch(states: list[State]) -> str | None:
    """A sentence if a rank waits, or failed, in a collective that others called differently."""
    for state in states:
        waits = state.waiting()
        if waits is None and state.kind == "failed":
            last = [
                (g, e[-1]) for g, e in (state.collectives or {}).items() if e and not e[-1]["done"]
            ]
            waits = last[0] if last else None
        if waits is not None and (sentence := _mismatch_sentence(states, *waits)) is not None:
            return sentence
    return None


def find_deadlock(states: list[State]) -> str | None:
    """A sentence if the running ranks can never go on, whatever time they are given; else None.

    Certain cases only: a rank waits in a collective that another has left the cell without; all
    running ranks wait, and not in the same call. Ranks that compute may still come.
    """
    running = [s for s in states if s.kind == "running"]
    if not running or any(s.where is None for s in running):
        return None
    if (mismatch := find_mismatch(states)) is not None:
        return mismatch
    if not all(s.blocked() for s in running):
        for state in running:
            waits = state.waiting()
            if waits is None:
                continue
            group, entry = waits
            absent = [s for s in states if s.kind != "running" and _missed(s, group, entry)]
            if absent:
                return _missing_sentence(states, group, entry)
        return None
    waits = [(s, s.waiting()) for s in running]
    known = [(s, w) for s, w in waits if w is not None]
    if not known:  # point-to-point calls only
        if len(running) < len(states) or len({_call_name(s) for s in running}) == 1:
            return _point_to_point_sentence(running)
        return None if _may_match(running) else _point_to_point_sentence(running)
    group, entry = known[0][1]
    same = [w for _, w in known if w[0] == group and _same_call(w[1], entry)]
    present = all(not _missed(s, group, entry) for s in states if s.kind in ("done", "failed"))
    if len(same) == len(running) and present:
        return None  # all in the same collective: it is moving data, or its time-out will tell
    several = any(w[0] != group for _, w in known)  # different groups may still resolve in turn
    if several and not any(_left_behind(w, states) for _, w in known):
        return None
    return _missing_sentence(states, *max((w for _, w in known), key=lambda wait: wait[1]["seq"]))


def _left_behind(wait: tuple[str, dict[str, Any]], states: list[State]) -> bool:
    """Whether a rank that has left the cell is missing from a collective that others wait in."""
    return any(s.kind in ("done", "failed") and _missed(s, *wait) for s in states)


def _missed(state: State, group: str, entry: dict[str, Any]) -> bool:
    """Whether a rank that knows this group has not started a collective that others wait in."""
    if group not in (state.collectives or {}) and group != WORLD:
        return False  # not a member of that group
    progress = state.progress(group)
    return progress is not None and progress < entry["seq"]


def _same_call(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[k] == b[k] for k in ("seq", "op", "shapes", "dtypes"))


def _call_name(state: State) -> str:
    """The torch.distributed function that a running rank stands in."""
    return ((state.where or {}).get("call") or {}).get("op", "")


def _may_match(running: list[State]) -> bool:
    """Whether a send and a receive among these could be on their way to each other."""
    calls = [_call_name(s) for s in running]
    return any("send" in c for c in calls) and any("recv" in c for c in calls)


def _mismatch_sentence(states: list[State], group: str, entry: dict[str, Any]) -> str | None:
    """The first collective in which ranks differ in kind, shape or type."""
    entries = {s.rank: s.entry(group, entry["seq"]) for s in states}
    found = {rank: e for rank, e in entries.items() if e is not None}
    calls = {rank: describe_entry(e, number=False) for rank, e in found.items()}
    if len(set(calls.values())) < 2:
        return None
    parts = [f"{label(ranks)}: {call}" for ranks, call in fold(calls)]
    return f"the ranks disagree about collective #{entry['seq']} of their group: {'; '.join(parts)}"


def _missing_sentence(states: list[State], group: str, entry: dict[str, Any]) -> str:
    absent = [s.rank for s in states if s.kind != "dead" and _missed(s, group, entry)]
    waiting = [
        s.rank
        for s in states
        if (w := s.waiting()) and w[0] == group and w[1]["seq"] == entry["seq"]
    ]
    name = f"{entry['op']} #{entry['seq']}"
    if not absent:
        return f"{label(waiting)} wait{'' if len(waiting) > 1 else 's'} in {name} for ever"
    return (
        f"{label(absent)} never reached {name}; "
        f"{label(waiting)} wait{'' if len(waiting) > 1 else 's'} in it"
    )


def _point_to_point_sentence(running: list[State]) -> str:
    parts = []
    for state in running:
        call = (state.where or {}).get("call") or {}
        peer = f" with rank {call['peer']}" if "peer" in call else ""
        parts.append(f"rank {state.rank} waits in {call.get('op', 'communication')}{peer}")
    return f"no other rank answers: {'; '.join(parts)}"


def report(states: list[State]) -> list[str]:
    """A line for each rank, or for each group of ranks in the same place."""
    lines = {s.rank: _line(s) for s in states}
    folded = fold(lines)
    width = max(len(label(ranks)) for ranks, _ in folded)
    return [f"  {label(ranks):<{width}}  {text}" for ranks, text in folded]


def _line(state: State) -> str:
    if state.kind == "done":
        return "finished the cell" + _after(state)
    if state.kind == "dead":
        words = "".join(f"\n      {x}" for x in state.last_words)
        return exit_reason(state.status) + (f"; its last words:{words}" if words else "")
    where = state.where or {}
    failure = state.failure or {}
    ended = failure.get("interrupted") or failure.get("cut")
    if state.kind == "failed" and failure.get("transport") and not ended:
        if timed_out(failure):
            return f"gave up waiting{_in(failure.get('collective'))}{_at(failure)}"
        return f"lost its connection{_in(failure.get('collective'))}{_at(failure)}"
    if state.kind == "failed" and not ended:
        return f"{failure.get('type')}: {failure.get('message')}{_at(failure)}"
    if ended and not where:
        return f"interrupted{_at(failure)}"
    waits, call = state.waiting(), where.get("call")
    if waits is not None:
        text = f"waiting in {describe_entry(waits[1])}"
    elif call is not None:
        text = "waiting" + _in(call)
    elif not where:
        text = "no answer (it holds Python's lock in C code)"
    else:
        text = "computing"
    return text + (_at({**where["line"]}) if where.get("line") else "")


def timed_out(failure: dict[str, Any]) -> bool:
    """Whether a rank failed because a collective took longer than the group's time-out."""
    return bool(failure.get("transport")) and "timed out" in failure["message"].lower()


def _in(call: dict[str, Any] | None) -> str:
    if not call:
        return ""
    tensor = f" ({call['dtype']} {call['shape']})" if "shape" in call else ""
    peer = f" with rank {call['peer']}" if "peer" in call else ""
    return f" in {call['op']}{tensor}{peer}"


def _after(state: State) -> str:
    entries = [e for group in (state.collectives or {}).values() for e in group]
    return f" after {describe_entry(entries[-1])}" if entries else " without any collective"


def _at(place: dict[str, Any]) -> str:
    if not place.get("line"):
        return ""
    code = place.get("code", "").strip()
    return f", line {place['line']}: {code}" if code else f", line {place['line']}"


def uneven_progress(states: list[State]) -> str | None:
    """A sentence if ranks that ended a cell have not made the same number of collectives."""
    for group in sorted({g for s in states for g in s.collectives or {}}):
        members = [s for s in states if group in (s.collectives or {}) or group == WORLD]
        counts = {s.rank: s.progress(group) for s in members if s.progress(group) is not None}
        if len(set(counts.values())) > 1:
            parts = [f"{label(ranks)} made {count}" for ranks, count in fold(counts)]
            return (
                "the ranks are out of step: of the collectives of one group "
                f"{', '.join(parts)}; the next call would mix up two of them"
            )
    return None


__all__ = [
    "State",
    "describe_entry",
    "exit_reason",
    "find_deadlock",
    "ranges",
    "report",
    "timed_out",
    "uneven_progress",
]
