"""The bake-off's table and picture: every library, one GPT, one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.held import Said, Together, held, largest
from dlcourse.figures.memory_by_category import memory_by_category_figure
from dlcourse.figures.tables import Table
from dlcourse.peers.bakeoff import TOLERANCE, maintenance
from dlcourse.words.strings import t
from dlcourse.words.units import human_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

Row = Mapping[str, Any]
Record = Mapping[str, Any]
_MIB = 2**20


def show_bakeoff(rows: Sequence[Row], recorded: Record | None = None) -> Together:
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
    named = _named(rows, recorded)
    facts = maintenance()
    table = [
        [_strategy(row), label, *_measured(row), row["lines"], *_facts(row, facts)]
        for label, row in named
    ]
    keys = ("strategy", "library", "gap", "time", "peak", "process", "sent", "lines", "by")
    heads = [t(f"bakeoff.{key}") for key in (*keys, "release")]
    parts: list[Any] = [Table(heads, table, caption=t("bakeoff.caption", ranks=rows[0]["ranks"]))]
    ran = [row for _, row in named if row["state"] == "ran"]
    if ran:
        what = t("bakeoff.held", count=len(ran), steps=len(ran[0]["losses"]))
        gap = largest(row["gap"] for row in ran)
        parts.append(held(what, gap, allowed=TOLERANCE, because=t("bakeoff.held.because")))
    links = [
        f"{name} {fact['by_source']} {fact['source']}"
        for name, fact in facts.items()
        if any(row["library"] == name for row in rows)
    ]
    if links:
        date = max(fact["read"] for fact in facts.values())
        parts.append(Said(t("bakeoff.sources", date=date) + " " + " · ".join(links)))
    return Together(*parts)


def show_bakeoff_memory(rows: Sequence[Row], recorded: Record | None = None) -> go.Figure:
    """What the fullest rank holds at the peak of a step under each library, by category.

    Arguments and errors as of `show_bakeoff`; libraries that did not run are left out.
    """
    named = [(label, row) for label, row in _named(rows, recorded) if row["state"] == "ran"]
    bars = {}
    for label, row in named:
        alone = row["strategy"] == "alone"
        bar = label if alone else f"{_strategy(row)}, {label}"
        bars[bar.replace("\n", " ")] = row["memory"]
    totals = {label: sum(memory.values()) for label, memory in bars.items()}
    least, most = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
    said = {"least": human_bytes(totals[least]), "most": human_bytes(totals[most])}
    title = t("bakeoff.memory.title", least_name=least, most_name=most, **said)
    return memory_by_category_figure(bars, title=title)


def _named(rows: Sequence[Row], recorded: Record | None) -> list[tuple[str, Row]]:
    """Each row with what its first cell says; recorded ones in the place of missing ones."""
    if not rows:
        raise ValueError("rows is empty: give what run_bakeoff() has returned")
    others = {row["name"]: row for row in recorded["rows"]} if recorded else {}
    named = []
    for row in rows:
        label, told = _name(row), others.get(row["name"])
        if row["state"] == "failed":
            label = t("bakeoff.failed", name=label, why=row["why"].splitlines()[0])
        elif row["state"] == "missing" and recorded and told and told["state"] == "ran":
            words = {"machine": recorded["machine"], "date": recorded["date"]}
            row, label = told, t("bakeoff.recorded", name=_name(told), **words)
        elif row["state"] == "missing":
            label = t("bakeoff.missing", name=label)
        named.append((label, row))
    return named


def _name(row: Row) -> str:
    """As people call it, and the version that ran."""
    if row["strategy"] == "alone":
        return t("bakeoff.name.alone")
    if row["name"].startswith("ours: "):
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
    return [fact["by"], f"{fact['release']}\n{fact['released']}"]
