"""Whether ranks wait for each other for ever: proved from two looks, not guessed from a time."""

from __future__ import annotations

from typing import Any

from dlcourse.ranks.diagnosis.mismatch import mismatch_sentence
from dlcourse.ranks.diagnosis.report import call_text, named
from dlcourse.ranks.diagnosis.state import ANY, RankState
from dlcourse.words.strings import t

IDLE_CPU = 0.05  # a rank that does nothing uses less than this share of a core


def find_deadlock(before: list[RankState], now: list[RankState]) -> str | None:
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
            if (sentence := mismatch_sentence(now, *wait)) is not None:
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


def _same_under_way(before: RankState, now: RankState) -> bool:
    """Whether a rank has begun and ended no collective between two looks."""
    open_before = [(g, e["seq"]) for g, e in before.under_way()]
    open_now = [(g, e["seq"]) for g, e in now.under_way()]
    last = {g: found[-1]["seq"] for g, found in (now.collectives or {}).items() if found}
    earlier = {g: found[-1]["seq"] for g, found in (before.collectives or {}).items() if found}
    return before.where is not None and open_before == open_now and earlier == last


def _same_wait(before: RankState, now: RankState) -> bool:
    """Whether a rank stood in one and the same wait, without an end of its own, in both looks."""
    if before.where is None or now.where is None:
        return False
    wait, earlier = now.where["wait"], before.where["wait"]
    if not wait or not earlier or wait["id"] != earlier["id"] or wait["limited"]:
        return False
    return now.where["certain"] and before.where["certain"]


def _idle(before: RankState, now: RankState) -> bool:
    """Whether a rank has computed next to nothing between two looks."""
    if before.where is None or now.where is None:
        return False
    seconds = now.where["time_s"] - before.where["time_s"]
    return now.where["cpu_s"] - before.where["cpu_s"] < IDLE_CPU * max(seconds, 0.1)


def _left_behind(state: RankState, ended: dict[int, RankState]) -> bool:
    """Whether a rank has begun a collective that another has left the cell without."""
    return any(_missed(s, *wait) for wait in state.under_way() for s in ended.values())


def _stuck(state: RankState, fixed: dict[int, RankState]) -> bool:
    """Whether a rank waits for something that only ranks in `fixed`, which do not move, can do."""
    message = state.waits_for_message()
    if message is not None:
        return _stuck_in_message(state, message, fixed)
    waits = state.under_way()  # which of these is waited for is not known: none may end
    return bool(waits) and all(
        any(_missed(s, *wait) for r, s in fixed.items() if r in state.members.get(wait[0], ()))
        for wait in waits
    )


def _stuck_in_message(
    state: RankState, message: dict[str, Any], fixed: dict[int, RankState]
) -> bool:
    group, peer, tag, count = (message[k] for k in ("group", "peer", "tag", "count"))
    members = state.members.get(group)
    if members is None or state.rank not in members:
        return False
    own = members.index(state.rank)
    partners = members if peer == ANY else [members[peer]]
    others = [fixed[r] for r in partners if r in fixed]
    if len(others) < len(partners):
        return False
    if message["direction"] == "recv" and peer != ANY:  # sent, less what receives from anybody took
        more = [others[0].posted("send", group, own, tag)]
        less = [state.posted("taken", group, peer, tag)]
    elif message["direction"] == "recv":  # sent by all, less what receives from a named rank took
        more = [s.posted("send", group, own, tag) for s in others]
        less = [state.posted("ended", group, rank, tag) for rank in range(len(members))]
    else:  # received, or asked for from anybody and not yet ended
        other = others[0]
        more = [other.posted(*x, tag) for x in _takers(group, own)]
        less = [other.posted("taken", group, rank, tag) for rank in range(len(members))]
    numbers = [*more, *less, state.posted(message["direction"], group, peer, tag)]
    if None in numbers:
        return False
    return sum(filter(None, more)) - sum(filter(None, less)) < count


def _takers(group: str, own: int) -> list[tuple[str, str, int]]:
    return [("recv", group, own), ("recv", group, ANY), ("taken", group, own)]


def _missed(state: RankState, group: str, entry: dict[str, Any]) -> bool:
    """Whether a rank has not started a collective of its group that others wait in."""
    if group not in state.members and group not in (state.collectives or {}):
        return False  # not a member of that group, as far as it has said
    progress = state.progress(group)
    return progress is not None and progress < entry["seq"]


def _missing_sentence(states: list[RankState], group: str, entry: dict[str, Any]) -> str:
    absent = [s.rank for s in states if s.kind != "dead" and _missed(s, group, entry)]
    waiting = [
        s.rank
        for s in states
        if (w := s.waiting()) and w[0] == group and w[1]["seq"] == entry["seq"]
    ]
    number = "several" if len(waiting) > 1 else "one"
    words = {"waiting": named(waiting), "call": f"{entry['op']} #{entry['seq']}"}
    if not absent:
        return t(f"ranks.for_ever.{number}", **words)
    return t(f"ranks.never_reached.{number}", absent=named(absent), **words)


def _point_to_point_sentence(running: list[RankState]) -> str:
    return t("ranks.no_answer", waits="; ".join(map(_waits, running)))


def _waits(state: RankState) -> str:
    call = state.message_call()
    if call is None:
        return t("ranks.waits.plain", ranks=named([state.rank]))
    return t("ranks.waits.in", ranks=named([state.rank]), call=call_text(call))
