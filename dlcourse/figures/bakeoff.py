"""The bake-off's table: every library, one GPT, one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlcourse.figures.held import Said, Together, held
from dlcourse.figures.tables import Table
from dlcourse.peers.bakeoff import TOLERANCE, maintenance
from dlcourse.words.strings import t

Row = Mapping[str, Any]
_MIB = 2**20


def show_bakeoff(rows: Sequence[Row], recorded: Mapping[str, Any] | None = None) -> Together:
    """What `dlcourse.peers.bakeoff.run_bakeoff` measured, a row for each, and what held.

    Args:
        rows: as `run_bakeoff` returns them, or ``recorded_bakeoff()["rows"]``.
        recorded: `recorded_bakeoff()`: its rows stand for libraries that are not installed here,
            and say so. Without it such a row only says that the library is missing.

    Returns:
        The table; that the losses are one process's; where the last two columns were read.

    Raises:
        AssertionError: a loss is further from one process's than `TOLERANCE`.
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("rows is empty: give what run_bakeoff() has returned")
    others = {row["name"]: row for row in (recorded or {}).get("rows", ())}
    facts = maintenance()
    shown: list[Row] = []
    table = []
    for row in rows:
        told = others.get(row["name"], {})
        label = _name(row)
        if row["state"] == "missing" and recorded and told.get("state") == "ran":
            words = {"machine": recorded["machine"], "date": recorded["date"]}
            row, label = told, t("bakeoff.recorded", name=_name(told), **words)
        elif row["state"] == "missing":
            label = t("bakeoff.missing", name=label)
        elif row["state"] == "failed":
            label = t("bakeoff.failed", name=label, why=row["why"].splitlines()[0])
        if row["state"] == "ran":
            shown.append(row)
        table.append([_strategy(row), label, *_measured(row), row["lines"], *_facts(row, facts)])
    keys = ("strategy", "library", "gap", "time", "peak", "process", "sent", "lines", "by")
    heads = [t(f"bakeoff.{key}") for key in (*keys, "release")]
    parts: list[Any] = [Table(heads, table, caption=t("bakeoff.caption", ranks=rows[0]["ranks"]))]
    if shown:
        steps = len(shown[0]["losses"])
        what = t("bakeoff.held", count=len(shown), steps=steps)
        because = t("bakeoff.held.because")
        gap = max(row["gap"] for row in shown)
        parts.append(held(what, gap, allowed=TOLERANCE, because=because))
    links = [
        f"{name} {fact['by_source']} {fact['source']}"
        for name, fact in facts.items()
        if any(row["library"] == name for row in rows)
    ]
    if links:
        date = max(fact["read"] for fact in facts.values())
        parts.append(Said(t("bakeoff.sources", date=date) + " " + " · ".join(links)))
    return Together(*parts)


def _name(row: Row) -> str:
    """As people call it, and the version that ran."""
    if row["strategy"] == "alone":
        return t("bakeoff.name.alone")
    if not row["library"]:
        return t("bakeoff.name.ours")
    return f"{row['name']} {row['version']}".strip()


def _strategy(row: Row) -> str:
    return t(f"bakeoff.strategy.{row['strategy']}", stage=row["stage"])


def _measured(row: Row) -> list[str]:
    if row["state"] != "ran":
        return [""] * 5
    return [
        f"{row['gap']:.0e}" if row["gap"] else "0",
        f"{row['ratio']:.2f}",
        f"{sum(row['memory'].values()) / _MIB:.1f}",
        f"{row['process'] / _MIB:.0f}",
        "" if row["sent"] is None else f"{row['sent'] / _MIB:.2f}",
    ]


def _facts(row: Row, facts: Mapping[str, Mapping[str, str]]) -> list[str]:
    if row["library"] not in facts:
        return ["", ""]
    fact = facts[row["library"]]
    return [fact["by"], f"{fact['release']}, {fact['released']}"]
