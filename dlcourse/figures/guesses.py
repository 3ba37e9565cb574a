"""How far a learner's predictions were off, and the formulas' beside them."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import TYPE_CHECKING

from dlcourse.figures.colors import INK, PLAIN
from dlcourse.figures.plotly_parts import (
    axis_of,
    figure_of,
    layout_of,
    rounded,
    rows_axis,
    rows_height,
)
from dlcourse.words.strings import t
from dlcourse.words.units import digits

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TICKS = [0.001, 0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 100, 1000]


def guesses_figure(
    points: Sequence[tuple[str, float, float | None]], *, title: str, lang: str | None = None
) -> go.Figure:
    """One row for each prediction: guess / measured, and formula / measured, on a log axis.

    points: id, the guess's ratio, the formula's ratio or None; ratios above 0.
    """
    formula = [(id, ratio) for id, _, ratio in points if ratio is not None]
    traces = [
        _marks([(id, ratio) for id, ratio, _ in points], t("guesses.yours", lang), PLAIN, 0),
        _marks(formula, t("guesses.formulas", lang), INK, 1),
    ]
    ratios = [ratio for *_, ratio in formula] + [ratio for _, ratio, _ in points]
    ends = [min([*ratios, 0.5]) / 1.3, max([*ratios, 2]) * 1.3]
    axis = axis_of(t("guesses.axis", lang), type="log", showgrid=True)
    axis["tickvals"] = _TICKS
    axis["ticktext"] = [f"{tick:g}×" for tick in _TICKS]
    axis["range"] = [log10(ends[0]), log10(ends[1])]
    ids = [id for id, *_ in points]
    line = {"type": "line", "x0": 1, "x1": 1, "xref": "x", "y0": 0, "y1": 1, "yref": "paper"}
    layout = layout_of(title, height=rows_height(len(ids), row=26), xaxis=axis)
    layout["shapes"] = [line | {"line": {"color": INK, "width": 1, "dash": "dot"}}]
    layout["yaxis"] = rows_axis() | {"categoryorder": "array", "categoryarray": ids}
    return figure_of(traces, layout)


def _marks(points: Sequence[tuple[str, float]], name: str, color: str, order: int) -> dict:
    """Points with their ratios beside them; colour is not alone, the shape differs too."""
    return {
        "type": "scatter",
        "mode": "markers+text" if order == 0 else "markers",
        "x": [rounded(ratio) for _, ratio in points],
        "y": [id for id, _ in points],
        "name": name,
        "marker": {"color": color, "size": 11, "symbol": ("circle", "line-ns-open")[order]}
        | ({"line": {"color": color, "width": 3}} if order else {}),
        "text": [f"  {digits(ratio)}×" for _, ratio in points],
        "textposition": "middle right",
        "textfont": {"color": INK, "size": 12},
        "cliponaxis": False,
        "hoverinfo": "y+text+name",
    }
