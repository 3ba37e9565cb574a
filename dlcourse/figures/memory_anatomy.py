"""Figures of lesson 13: what memory is made of over a step, and paths to less of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.colors import CATEGORIES, INK, PLAIN, RANKS
from dlcourse.figures.plotly_parts import axis_of, figure_of, layout_of, line, rounded, thin_series
from dlcourse.words.strings import t
from dlcourse.words.units import byte_scale, human_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

Series = Sequence[Sequence[float]]  # rows: time, then bytes of each category
Point = tuple[str, float, float]  # what it is, seconds or another cost, bytes
_COLUMNS = 2
# The pie that claim D5 draws, in percent
PICTURE = {"parameters": 25, "gradients": 25, "optimizer_state": 35, "activations": 15}


def shares(categories: Mapping[str, float]) -> dict[str, float]:
    """Percent of parameters, gradients, optimizer state and activations in their sum."""
    total = sum(categories[name] for name in PICTURE)
    return {name: 100 * categories[name] / total for name in PICTURE}


def distance(categories: Mapping[str, float]) -> float:
    """Percent of the memory that would have to move to another category to give ``PICTURE``."""
    found = shares(categories)
    return sum(abs(found[name] - PICTURE[name]) for name in PICTURE) / 2


def anatomy_figure(
    cases: Mapping[str, Series], *, title: str, lang: str | None = None
) -> go.Figure:
    """Live bytes by category over one step: a panel for each case, all to the same scale.

    Args:
        cases: label -> a record's ``series``, as the recorder gives it.

    Raises:
        ValueError: there are no cases, or one without points.
    """
    if not cases or not all(cases.values()):
        raise ValueError("cases is empty, or has a series without points: record a step first")
    top = max(sum(row[1:]) for series in cases.values() for row in series)
    divisor, unit = byte_scale(top)
    rows = -(-len(cases) // _COLUMNS)
    traces: list[dict] = []
    layout = layout_of(title, height=110 + 180 * rows, xaxis={}, yaxis={}, hovermode="x")
    notes = list(layout.get("annotations", ()))
    for number, (label, series) in enumerate(cases.items()):
        row, column = divmod(number, _COLUMNS)
        suffix = "" if number == 0 else str(number + 1)
        left, low = column * 0.53, 1 - (row + 1) / rows
        last = row == rows - 1 or number + _COLUMNS >= len(cases)
        layout[f"xaxis{suffix}"] = axis_of(
            t("memory_anatomy.axis.step", lang) if last else "",
            domain=[left, left + 0.47],
            anchor=f"y{suffix}",
            range=[0, 100],
        )
        layout[f"yaxis{suffix}"] = axis_of(
            t("figure.axis.memory", lang, unit=unit) if column == 0 else "",
            domain=[low + 0.06 * (row < rows - 1), low + 1 / rows - 0.06],
            anchor=f"x{suffix}",
            range=[0, rounded(1.05 * top / divisor)],
        )
        here = max(sum(r[1:]) for r in series)
        notes.append(
            {
                "text": f"<b>{label}</b>: {human_bytes(here)}",
                "x": left,
                "y": low + 1 / rows - 0.055,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": 13, "color": INK},
            }
        )
        traces += _areas(thin_series(series), number, suffix, divisor, unit, lang)
    layout["annotations"] = notes
    return figure_of(traces, layout)


def _areas(
    series: Series, number: int, suffix: str, divisor: float, unit: str, lang: str | None
) -> list[dict[str, Any]]:
    first, length = series[0][0], max(series[-1][0] - series[0][0], 1)
    x = [rounded(100 * (row[0] - first) / length) for row in series]
    return [
        {
            "type": "scatter",
            "x": x,
            "y": [rounded(row[i + 1] / divisor) for row in series],
            "name": t(f"category.{name}", lang),
            "legendgroup": name,
            "showlegend": number == 0 and name != "communication",
            "mode": "lines",
            "line": {"shape": "hv", "width": 0.5, "color": color},
            "fillcolor": color,
            "stackgroup": f"case{number}",
            "xaxis": f"x{suffix}",
            "yaxis": f"y{suffix}",
            "hovertemplate": f"%{{y:.3~g}} {unit}",
        }
        for i, (name, color) in enumerate(CATEGORIES.items())
    ]


def memory_vs_time_figure(
    everything: Sequence[Point],
    paths: Mapping[str, Sequence[Point]],
    *,
    title: str,
    lang: str | None = None,
) -> go.Figure:
    """Peak memory over the time of a step: every set of techniques, and paths through them.

    Args:
        everything: all sets that were measured; the cost is relative to that of none (1.0).
        paths: such as the best sets and a recommended order; each gets a line.

    Raises:
        ValueError: nothing was measured.
    """
    if not everything:
        raise ValueError("everything holds no point: give at least one set of techniques")
    divisor, unit = byte_scale(max(size for _, _, size in everything))
    marks = line(
        [rounded(cost) for _, cost, _ in everything],
        [rounded(size / divisor) for _, _, size in everything],
        t("memory_anatomy.all_sets", lang),
        PLAIN,
    )
    marks["mode"] = "markers"
    marks["hovertext"] = [f"{name}: ×{cost:.2f}, {human_bytes(n)}" for name, cost, n in everything]
    marks["hoverinfo"] = "text"
    traces = [marks]
    for order, (name, points) in enumerate(paths.items()):
        trace = line(
            [rounded(cost) for _, cost, _ in points],
            [rounded(size / divisor) for _, _, size in points],
            name,
            RANKS[order],
            order=order,
            markers=True,
        )
        trace["hovertext"] = [f"{what}: ×{c:.2f}, {human_bytes(n)}" for what, c, n in points]
        trace["hoverinfo"] = "text"
        traces.append(trace)
    layout = layout_of(
        title,
        height=400,
        xaxis=axis_of(t("memory_anatomy.axis.time", lang)),
        yaxis=axis_of(t("figure.axis.peak_memory", lang, unit=unit), rangemode="tozero"),
    )
    return figure_of(traces, layout)
