"""A line for each rank: where it stands, or how it ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any

from dlcourse.ranks.diagnosis.state import RankState
from dlcourse.ranks.display import fold
from dlcourse.words.strings import t
from dlcourse.words.units import rank_ranges

MACHINE_LOST = -1  # the wait status of ranks whose machine gives no sign any more
_machines: ContextVar[Sequence[str]] = ContextVar("machines", default=())  # of each rank
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
    width = max(len(named(ranks)) for ranks, _ in folded)
    return [f"  {named(ranks):<{width}}  {text}" for ranks, text in folded]


@contextmanager
def on_machines(names: Sequence[str]) -> Iterator[None]:
    """Within it, ranks are named with their machines; names: one for each rank, or none."""
    before = _machines.set(names)
    try:
        yield
    finally:
        _machines.reset(before)


def named(ranks: list[int]) -> str:
    """ "rank 2", or "ranks 0-3", in the language in use.

    On several machines "ranks 0-1 (alpha), 2-3 (beta)".
    """
    names = _machines.get()
    which = rank_ranges(ranks)
    if names:
        there = fold({rank: names[rank] for rank in ranks})
        which = ", ".join(f"{rank_ranges(some)} ({name})" for some, name in there)
    return t("ranks.several" if len(ranks) > 1 else "ranks.one", ranks=which)


def _line(state: RankState) -> str:
    if state.kind == "done":
        return _finished(state)
    if state.kind == "dead":
        words = "".join(f"\n      {x}" for x in state.last_words)
        reason = exit_reason(state.status)
        return t("ranks.last_words", reason=reason, words=words) if words else reason
    where = state.where or {}
    failure = state.failure or {}
    ended = failure.get("interrupted") or failure.get("cut")
    if state.kind == "failed" and failure.get("transport") and not ended:
        key = "ranks.gave_up" if timed_out(failure) else "ranks.lost"
        return _doing(key, failure.get("collective")) + _at(failure)
    if state.kind == "failed" and not ended:
        return f"{failure.get('type')}: {failure.get('message')}{_at(failure)}"
    if ended and not where:
        return t("ranks.interrupted") + _at(failure)
    waits, call = state.waiting(), state.message_call()
    in_wait = where.get("wait") is not None
    if in_wait and waits is not None and state.waits_for_message() is None:
        text = t("ranks.waiting.in", call=describe_entry(waits[1]))
    elif call is not None:  # without a wait: about to start it, or busy with its store
        text = _doing("ranks.waiting", call) if in_wait else t("ranks.inside", call=call_text(call))
    elif waits is not None:
        text = t("ranks.begun", call=describe_entry(waits[1]))
    else:
        text = t("ranks.computing" if where else "ranks.silent")
    return text + (_at({**where["line"]}) if where.get("line") else "")


def timed_out(failure: dict[str, Any]) -> bool:
    """Whether a rank failed because a collective took longer than the group's time-out."""
    return bool(failure.get("transport")) and "timed out" in failure["message"].lower()


def call_text(call: dict[str, Any]) -> str:
    """ "recv (float32 [2]) with rank 1"."""
    tensor = f" ({call['dtype']} {call['shape']})" if "shape" in call else ""
    text = f"{call['op']}{tensor}"
    return t("ranks.with_peer", call=text, peer=call["peer"]) if "peer" in call else text


def _doing(key: str, call: dict[str, Any] | None) -> str:
    """What a rank did or does, and in which call, where that is known."""
    return t(f"{key}.in", call=call_text(call)) if call else t(f"{key}.plain")


def _finished(state: RankState) -> str:
    entries = [e for group in (state.collectives or {}).values() for e in group]
    if not entries:
        return t("ranks.finished.without")
    return t("ranks.finished.after", call=describe_entry(entries[-1]))


def _at(place: dict[str, Any]) -> str:
    if not place.get("line"):
        return ""
    code = place.get("code", "").strip()
    line = t("ranks.line", line=place["line"])
    return f", {line}: {code}" if code else f", {line}"


def describe_entry(entry: dict[str, Any], *, number: bool = True) -> str:
    """ "all_reduce #3 (float32 [4], 16 bytes)"."""
    parts, size = [], 0
    for shape, dtype in zip(entry["shapes"], entry["dtypes"], strict=False):
        name, width = _DTYPES.get(dtype, (dtype.lower(), _WIDTHS.get(dtype, 0)))
        parts.append(f"{name} {shape}")
        size += width * prod(shape)
    size_text = t("ranks.bytes", size=f"{size:,}")
    inside = ", ".join([*parts, size_text]) if parts else t("ranks.no_tensor")
    return f"{entry['op']}{' #' + str(entry['seq']) if number else ''} ({inside})"


def exit_reason(status: int | None, *, out_of_memory: bool = False) -> str:
    """A wait status in words."""
    if status is None:
        return t("ranks.exit.unknown")
    if status == MACHINE_LOST:
        return t("ranks.exit.machine_lost")
    if status & 0x7F:
        name = signal.Signals(status & 0x7F).name
        if name == "SIGKILL":
            return t("ranks.exit.out_of_memory" if out_of_memory else "ranks.exit.killed")
        return t("ranks.exit.signal", name=name)
    return t("ranks.exit.code", code=status >> 8)
