"""Ranks that disagree: in one collective of their group, or in how many they have made."""

from __future__ import annotations

from math import prod
from typing import Any

from dlcourse.ranks.diagnosis.report import describe_entry, named
from dlcourse.ranks.diagnosis.state import WORLD, RankState
from dlcourse.ranks.display import fold
from dlcourse.words.strings import t

# Collectives in which ranks may bring tensors of different sizes, or none.
UNEVEN = ("scatter", "all_to_all", "dispatch", "combine")


def find_mismatch(states: list[RankState]) -> str | None:
    """A sentence if a rank waits, or failed, in a collective that others called differently."""
    for state in states:
        waits = state.waiting()
        if waits is None and state.kind == "failed":
            last = [
                (g, e[-1]) for g, e in (state.collectives or {}).items() if e and not e[-1]["done"]
            ]
            waits = last[0] if last else None
        if waits is not None and (sentence := mismatch_sentence(states, *waits)) is not None:
            return sentence
    return None


def mismatch_sentence(states: list[RankState], group: str, entry: dict[str, Any]) -> str | None:
    """The first collective in which ranks differ in kind, shape or type."""
    entries = {s.rank: s.entry(group, entry["seq"]) for s in states}
    found = {rank: e for rank, e in entries.items() if e is not None}
    if len({_must_agree(e) for e in found.values()}) < 2:
        return None
    calls = {rank: describe_entry(e, number=False) for rank, e in found.items()}
    parts = [f"{named(ranks)}: {call}" for ranks, call in fold(calls)]
    return t("ranks.disagree", number=entry["seq"], calls="; ".join(parts))


def _must_agree(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What has to be the same in all ranks of one collective."""
    if entry["op"] in UNEVEN:
        return (entry["op"],)
    return entry["op"], tuple(entry["dtypes"]), tuple(map(prod, entry["shapes"]))


def uneven_progress(states: list[RankState]) -> str | None:
    """A sentence if ranks that ended a cell have not made the same number of collectives."""
    for group in sorted({g for s in states for g in s.collectives or {}}):
        members = [s for s in states if group in (s.collectives or {}) or group == WORLD]
        counts = {s.rank: s.progress(group) for s in members if s.progress(group) is not None}
        if len(set(counts.values())) > 1:
            parts = [t("ranks.made", ranks=named(r), count=count) for r, count in fold(counts)]
            return t("ranks.out_of_step", made=", ".join(parts))
    return None
