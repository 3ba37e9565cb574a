"""Say in words why a cell did not end: which rank, which collective, which line.

Works on plain data that the ranks sent, so that it can be read and tested without processes.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
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
ANY = -1  # the peer of a receive that takes what comes first
IDLE_CPU = 0.05  # a rank that does nothing uses less than this share of a core
# Collectives in which ranks may bring tensors of different sizes, or none.
UNEVEN = ("scatter", "all_to_all")


# "send", "recv", "ended" or "taken" (see `Waits`), group, peer's number in it (-1: any), tag
Message = tuple[str, str, int, int]


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
    members: dict[str, list[int]] = field(default_factory=dict)  # group -> ranks, in its order
    messages: dict[Message, int | None] = field(default_factory=dict)  # None: not known
    blind: bool = False  # messages were posted that nobody counted

    def progress(self, group: str) -> int | None:
        """The number of the last collective that this rank started in a group; None: unknown."""
        entries = (self.collectives or {}).get(group)
        if entries:
            return entries[-1]["seq"]
        return 0 if entries is None and self.kind != "dead" else None

    def posted(self, *message: Any) -> int | None:
        """How often this rank has posted a message; None: unknown."""
        return None if self.blind else self.messages.get(message, 0)

    def under_way(self) -> list[tuple[str, dict[str, Any]]]:
        """The first collective of each group that has not ended when a rank was looked at."""
        if not self.where:
            return []
        groups = self.where["collectives"]
        first = {g: next((e for e in groups[g] if not e["done"]), None) for g in groups}
        return [(group, entry) for group, entry in first.items() if entry is not None]

    def waiting(self) -> tuple[str, dict[str, Any]] | None:
        """The group and the collective that a rank waits in, or has begun and not ended."""
        return next(iter(self.under_way()), None)

    def waits_for_message(self) -> dict[str, Any] | None:
        """The message whose end a rank waits for."""
        wait = (self.where or {}).get("wait") or {}
        return wait if "way" in wait else None

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


def find_deadlock(before: list[State], now: list[State]) -> str | None:
    """A sentence if no running rank can ever go on, whatever time it is given; else None.

    Proved from two looks, the second begun after the first had ended. A rank that is in the same
    wait in both has done nothing in between. Then what it waits for has not come: not from a rank
    that has left the cell, and not from one that stood still as well. How long ranks take, or how
    busy the machine is, plays no part.
    """
    running = [s for s in now if s.kind == "running"]
    earlier = {s.rank: s for s in before}
    if not running or any(s.where is None for s in running):
        return None
    stayed = [s for s in running if s.rank in earlier and _same_under_way(earlier[s.rank], s)]
    for state in stayed:
        for wait in state.under_way():
            if (sentence := _mismatch_sentence(now, *wait)) is not None:
                return sentence
    ended = {s.rank: s for s in now if s.kind in ("done", "failed")}
    hopeless = {s.rank: s for s in stayed if _idle(earlier[s.rank], s) and _left_behind(s, ended)}
    still = {s.rank: s for s in stayed if _same_wait(earlier[s.rank], s)} | hopeless
    # Whoever waits for a rank that may still move may move itself: take these out, until all that
    # are left wait for each other or for ranks that have left.
    while True:
        fixed = ended | still
        free = [r for r, s in still.items() if r not in hopeless and not _stuck(s, fixed)]
        if not free:
            break
        for rank in free:
            del still[rank]
    if len(still) < len(running):
        return None
    waits = [wait for s in still.values() for wait in s.under_way()]
    missed = [w for w in waits if any(_missed(s, *w) for s in ended.values())] or waits
    if missed:
        return _missing_sentence(now, *min(missed, key=lambda wait: wait[1]["seq"]))
    return _point_to_point_sentence(running)


def _same_under_way(before: State, now: State) -> bool:
    """Whether a rank has begun and ended no collective between two looks."""
    open_before = [(g, e["seq"]) for g, e in before.under_way()]
    open_now = [(g, e["seq"]) for g, e in now.under_way()]
    last = {g: found[-1]["seq"] for g, found in (now.collectives or {}).items() if found}
    earlier = {g: found[-1]["seq"] for g, found in (before.collectives or {}).items() if found}
    return before.where is not None and open_before == open_now and earlier == last


def _same_wait(before: State, now: State) -> bool:
    """Whether a rank stood in one and the same wait, without an end of its own, in both looks."""
    if before.where is None or now.where is None:
        return False
    wait, earlier = now.where["wait"], before.where["wait"]
    if not wait or not earlier or wait["id"] != earlier["id"] or wait["limited"]:
        return False
    return now.where["certain"] and before.where["certain"]


def _idle(before: State, now: State) -> bool:
    """Whether a rank has computed next to nothing between two looks."""
    if before.where is None or now.where is None:
        return False
    seconds = now.where["time_s"] - before.where["time_s"]
    return now.where["cpu_s"] - before.where["cpu_s"] < IDLE_CPU * max(seconds, 0.1)


def _left_behind(state: State, ended: dict[int, State]) -> bool:
    """Whether a rank has begun a collective that another has left the cell without."""
    return any(_missed(s, *wait) for wait in state.under_way() for s in ended.values())


def _stuck(state: State, fixed: dict[int, State]) -> bool:
    """Whether a rank waits for something that only ranks in `fixed`, which do not move, can do."""
    message = state.waits_for_message()
    if message is not None:
        return _stuck_in_message(state, message, fixed)
    waits = state.under_way()  # which of these is waited for is not known: none may end
    return bool(waits) and all(
        any(_missed(s, *wait) for r, s in fixed.items() if r in state.members.get(wait[0], ()))
        for wait in waits
    )


def _stuck_in_message(state: State, message: dict[str, Any], fixed: dict[int, State]) -> bool:
    group, peer, tag, count = (message[k] for k in ("group", "peer", "tag", "count"))
    members = state.members.get(group)
    if members is None or state.rank not in members:
        return False
    own = members.index(state.rank)
    others = [fixed.get(r) for r in (members if peer == ANY else [members[peer]])]
    if any(s is None for s in others if s is not state):
        return False
    if message["way"] == "recv" and peer != ANY:  # sent, less what receives from anybody took
        more = [others[0].posted("send", group, own, tag)]
        less = [state.posted("taken", group, peer, tag)]
    elif message["way"] == "recv":  # sent by all, less what receives from a named rank took
        more = [s.posted("send", group, own, tag) for s in others]
        less = [state.posted("ended", group, rank, tag) for rank in range(len(members))]
    else:  # received, or asked for from anybody and not yet ended
        other = others[0]
        more = [other.posted(*x, tag) for x in _takers(group, own)]
        less = [other.posted("taken", group, rank, tag) for rank in range(len(members))]
    numbers = [*more, *less, state.posted(message["way"], group, peer, tag)]
    return None not in numbers and sum(more) - sum(less) < count


def _takers(group: str, own: int) -> list[tuple[str, str, int]]:
    return [("recv", group, own), ("recv", group, ANY), ("taken", group, own)]


def _missed(state: State, group: str, entry: dict[str, Any]) -> bool:
    """Whether a rank has not started a collective of its group that others wait in."""
    if group not in state.members and group not in (state.collectives or {}):
        return False  # not a member of that group, as far as it has said
    progress = state.progress(group)
    return progress is not None and progress < entry["seq"]


def _mismatch_sentence(states: list[State], group: str, entry: dict[str, Any]) -> str | None:
    """The first collective in which ranks differ in kind, shape or type."""
    entries = {s.rank: s.entry(group, entry["seq"]) for s in states}
    found = {rank: e for rank, e in entries.items() if e is not None}
    if len({_must_agree(e) for e in found.values()}) < 2:
        return None
    calls = {rank: describe_entry(e, number=False) for rank, e in found.items()}
    parts = [f"{label(ranks)}: {call}" for ranks, call in fold(calls)]
    return f"the ranks disagree about collective #{entry['seq']} of their group: {'; '.join(parts)}"


def _must_agree(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What has to be the same in all ranks of one collective."""
    if entry["op"] in UNEVEN:
        return (entry["op"],)
    return entry["op"], tuple(entry["dtypes"]), tuple(map(prod, entry["shapes"]))


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
    parts = [f"rank {state.rank} waits{_in(_message_call(state))}" for state in running]
    return f"no other rank answers: {'; '.join(parts)}"


def _message_call(state: State) -> dict[str, Any] | None:
    """The call whose message a rank waits for, its peer by its number among all ranks."""
    message = state.waits_for_message()
    call = (state.where or {}).get("call")
    if message is None or call is not None:
        return call
    members = state.members.get(message["group"], [])
    peer = message["peer"]
    return {"op": message["way"]} | ({"peer": members[peer]} if 0 <= peer < len(members) else {})


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
    waits, call = state.waiting(), _message_call(state)
    in_wait = where.get("wait") is not None
    if in_wait and waits is not None and state.waits_for_message() is None:
        text = f"waiting in {describe_entry(waits[1])}"
    elif call is not None:  # without a wait: about to start it, or busy with its store
        text = "waiting" * in_wait + _in(call)
    elif waits is not None:
        text = f"has begun {describe_entry(waits[1])}, which has not ended"
    elif not where:
        text = "no answer (it holds Python's lock in C code)"
    else:
        text = "computing"
    return text.strip() + (_at({**where["line"]}) if where.get("line") else "")


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
