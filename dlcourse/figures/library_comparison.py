"""One table for several implementations of the same training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from dlcourse.figures.colors import CATEGORIES
from dlcourse.figures.tables import Table
from dlcourse.words.strings import t

_MIB = 2**20


def library_comparison_table(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    reference: str,
    loss: Callable[[Iterable[float]], float] = fmean,
    absent: Sequence[str] = (),
    recorded: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Table:
    """A row for each implementation: same loss, time, messages and bytes, peak memory by category.

    Args:
        found: name -> what ``dlcourse.peers.comparison`` has returned, one for each rank.
        reference: whose step takes 1.
        loss: joins what the ranks say: their mean, or ``max`` where only a last stage knows it.
        absent: names of libraries that are not installed here.
        recorded: rows as in ``found`` from another run; their names should say so.
    """
    header = [t(f"peers.{key}") for key in ("library", "loss")]
    header += [t("peers.time", reference=reference), t("peers.calls")]
    header += [t("peers.sent"), t("peers.peak")]
    header += [t(f"category.{name}") for name in CATEGORIES]
    rows = [_row(name, ranks, loss) for name, ranks in (dict(found) | dict(recorded or {})).items()]
    rows += [[t("peers.absent", name=name), *[""] * (len(header) - 1)] for name in absent]
    return Table(header, rows, caption=t("peers.caption"))


def _row(
    name: str, ranks: Sequence[Mapping[str, Any]], loss: Callable[[Iterable[float]], float]
) -> list[str]:
    ratios = [rank["ratio"] for rank in ranks if "ratio" in rank]
    sent = [rank["sent"] for rank in ranks if rank["sent"] is not None]
    fullest = max((rank["memory"] for rank in ranks), key=lambda memory: sum(memory.values()))
    return [
        name,
        f"{loss(rank['loss'] for rank in ranks):.4f}",
        f"{max(ratios):.2f}" if ratios else "1",
        str(max(rank["calls"] for rank in ranks)),
        f"{max(sent) / _MIB:.1f}" if sent else "",
        f"{sum(fullest.values()) / _MIB:.1f}",
        *(f"{fullest[category] / _MIB:.1f}" for category in CATEGORIES),
    ]
