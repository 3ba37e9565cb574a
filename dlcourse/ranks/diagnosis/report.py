"""A line for each rank: where it stands, or how it ended."""

from __future__ import annotations

import signal
from math import prod
from typing import Any

from dlcourse.ranks.diagnosis.state import RankState
from dlcourse.ranks.display import fold, label

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
_WIDTHS = dict(_DTYPES.values())


def report(states: list[RankState]) -> list[str]:
    """A line for each rank, or for each group of ranks in the same place."""
    lines = {s.rank: _line(s) for s in states}
    folded = fold(lines)
    width = max(len(label(ranks)) for ranks, _ in folded)
    return [f"  {label(ranks):<{width}}  {text}" for ranks, text in folded]


def _line(state: RankState) -> str:
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
            return f"gave up waiting{in_call(failure.get('collective'))}{_at(failure)}"
        return f"lost its connection{in_call(failure.get('collective'))}{_at(failure)}"
    if state.kind == "failed" and not ended:
        return f"{failure.get('type')}: {failure.get('message')}{_at(failure)}"
    if ended and not where:
        return f"interrupted{_at(failure)}"
    waits, call = state.waiting(), state.message_call()
    in_wait = where.get("wait") is not None
    if in_wait and waits is not None and state.waits_for_message() is None:
        text = f"waiting in {describe_entry(waits[1])}"
    elif call is not None:  # without a wait: about to start it, or busy with its store
        text = "waiting" * in_wait + in_call(call)
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


def in_call(call: dict[str, Any] | None) -> str:
    if not call:
        return ""
    tensor = f" ({call['dtype']} {call['shape']})" if "shape" in call else ""
    peer = f" with rank {call['peer']}" if "peer" in call else ""
    return f" in {call['op']}{tensor}{peer}"


def _after(state: RankState) -> str:
    entries = [e for group in (state.collectives or {}).values() for e in group]
    return f" after {describe_entry(entries[-1])}" if entries else " without any collective"


def _at(place: dict[str, Any]) -> str:
    if not place.get("line"):
        return ""
    code = place.get("code", "").strip()
    return f", line {place['line']}: {code}" if code else f", line {place['line']}"


def describe_entry(entry: dict[str, Any], *, number: bool = True) -> str:
    """ "all_reduce #3 (float32 [4], 16 bytes)"."""
    parts, size = [], 0
    for shape, dtype in zip(entry["shapes"], entry["dtypes"], strict=False):
        name, width = _DTYPES.get(dtype, (dtype.lower(), _WIDTHS.get(dtype, 0)))
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
