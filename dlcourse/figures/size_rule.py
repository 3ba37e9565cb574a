"""The map of claim B7: where choosing by the model's size is right, and where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from dlcourse.figures.colors import CATEGORIES, RANKS
from dlcourse.figures.picture import Picture, Tiles, tiles
from dlcourse.figures.tables import Table
from dlcourse.words.strings import t

# Of no category and no rank here; each cell says in figures what its colour says
COLORS = {
    "right": RANKS[4],
    "unsure": CATEGORIES["other"],
    "slower": RANKS[1],
    "too_large": RANKS[3],
    "nothing": "",
}
_WAYS = ("data", "zero2", "3d", "3d_offload")


class Map(Protocol):
    """What is drawn of ``dlcourse.plan.size_rule.SizeMap``."""

    gpu: str
    software: str
    models: tuple[str, ...]
    gpus: tuple[int, ...]

    def cell(self, model: str, gpus: int) -> Any: ...
    def count(self, verdict: str, way: str | None = None) -> int: ...
    @property
    def possible(self) -> int: ...


def show_size_map(*maps: Map) -> Picture:
    """One map, or two beside each other: models from above, GPUs from the left.

    A cell has what the rule takes more than the fastest layout, in percent.

    Args:
        maps: of ``dlcourse.plan.size_rule.size_map``, with the same models.

    Raises:
        ValueError: no map, more than two, or different models.
    """
    if not 1 <= len(maps) <= 2 or len({each.models for each in maps}) > 1:
        raise ValueError(f"show_size_map takes 1 or 2 maps of the same models, not {len(maps)}")
    first = maps[0]
    ways = {model: first.cell(model, first.gpus[0]).way for model in first.models}
    starts = {way: model for model, way in reversed(ways.items())}  # the smallest of each
    return tiles(
        [_panel(each) for each in maps],
        title=_title(maps),
        axis=t("size_rule.axis"),
        groups={model: t(f"size_rule.way.{way}") for way, model in starts.items()},
        legend={t(f"size_rule.verdict.{name}"): color for name, color in COLORS.items()},
    )


def _panel(one: Map) -> Tiles:
    cells = {model: [one.cell(model, gpus) for gpus in one.gpus] for model in one.models}
    return Tiles(
        head=t("size_rule.panel", gpu=one.gpu, software=t(f"size_rule.software.{one.software}")),
        columns=[f"{gpus:,}" for gpus in one.gpus],
        rows={
            model: [(_short(cell), COLORS[cell.verdict]) for cell in row]
            for model, row in cells.items()
        },
    )


def _short(cell: Any) -> str:
    if cell.slower is None:
        return {"too_large": "✗", "nothing": "–"}[cell.verdict]
    return f"+{100 * (cell.slower - 1):.0f}%"


def _title(maps: Sequence[Map]) -> str:
    counts = ", ".join(
        t("size_rule.count", gpu=each.gpu, right=each.count("right"), possible=each.possible)
        for each in maps
    )
    large = sum(each.count("right", "3d_offload") for each in maps)
    there = sum(
        each.count(verdict, "3d_offload")
        for each in maps
        for verdict in ("right", "unsure", "slower", "too_large")
    )
    return t("size_rule.title", counts=counts, large=large, there=there)


def _way(way: str) -> str:
    return t(f"size_rule.way.{way}").replace("\n", " ")


def show_size_bands(*maps: Map) -> Table:
    """How often each of the rule's four answers is right, of the cases in which anything fits."""
    header = [t("size_rule.way"), *(each.gpu for each in maps)]
    rows = []
    for way in _WAYS:
        row = [_way(way)]
        for each in maps:
            there = sum(each.count(v, way) for v in COLORS if v != "nothing")
            row.append(t("size_rule.of", right=each.count("right", way), possible=there))
        rows.append(row)
    return Table(header, rows, caption=t("size_rule.bands"))


def show_tensor_of_mixtures(rows: Sequence[dict[str, Any]]) -> Table:
    """Tensor sizes of mixtures of experts: the planner's times, and what was published.

    Args:
        rows: of ``dlcourse.plan.size_rule.tensor_of_mixtures``.
    """
    sizes = list(rows[0]["slower"])
    keys = ("model", "by_total", "by_active", "published")
    header = [*(t(f"size_rule.mixture.{key}") for key in keys), *(f"TP {size}" for size in sizes)]
    table = []
    for row in rows:
        times = [f"{row['slower'][size]:.2f} ×" if row["slower"][size] else "✗" for size in sizes]
        total, active = (f"{row[key] / 1e9:.0f}e9" for key in ("total", "active"))
        by = [_way(row[key]) for key in ("way", "way_of_active")]
        table.append(
            [
                row["model"],
                f"{by[0]} ({total})",
                f"{by[1]} ({active})",
                f"TP {row['published']}",
                *times,
            ]
        )
    sources = "; ".join(f"{row['model']}: {row['source']}" for row in rows)
    return Table(header, table, caption=t("size_rule.mixture", sources=sources))
