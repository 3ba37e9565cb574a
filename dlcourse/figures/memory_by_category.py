"""One figure: what a rank keeps, by category, for several ways to train side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dlcourse.figures.colors import CATEGORIES
from dlcourse.figures.plotly_parts import (
    axis_of,
    bar,
    end_labels,
    figure_of,
    layout_of,
    rounded,
    rows_axis,
    rows_height,
)
from dlcourse.words.strings import t
from dlcourse.words.units import byte_scale, digits, human_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go


def memory_by_category_figure(
    rows: Mapping[str, Mapping[str, float]], *, title: str, lang: str | None = None
) -> go.Figure:
    """Stacked bars of bytes by category, one bar a row.

    rows: label -> {category: bytes}; categories that no row has are left out.

    Raises:
        ValueError: there are no rows, or a category is unknown.
    """
    if not rows:
        raise ValueError("rows is empty: give at least one label with its bytes by category")
    unknown = {name for sizes in rows.values() for name in sizes} - set(CATEGORIES)
    if unknown:
        raise ValueError(
            f"rows holds {', '.join(sorted(unknown))}, which are no categories: "
            f"give some of {', '.join(CATEGORIES)}"
        )
    labels, totals = list(rows), [sum(sizes.values()) for sizes in rows.values()]
    divisor, unit = byte_scale(max(totals))
    traces = []
    for name, color in CATEGORIES.items():
        counts = [sizes.get(name, 0) for sizes in rows.values()]
        if not any(counts):
            continue
        wide = [count > 0.06 * max(totals) for count in counts]
        traces.append(
            bar(
                y=labels,
                x=[rounded(count / divisor) for count in counts],
                name=t(f"category.{name}", lang),
                color=color,
                text=[digits(c / divisor) if w else "" for c, w in zip(counts, wide, strict=True)],
                hovertext=[f"{t(f'category.{name}', lang)}: {human_bytes(c)}" for c in counts],
            )
        )
    traces.append(end_labels(labels, [v / divisor for v in totals], map(human_bytes, totals)))
    layout = layout_of(
        title,
        height=rows_height(len(rows), row=30),
        xaxis=axis_of(
            t("figure.axis.memory", lang, unit=unit),
            range=[0, rounded(max(totals) / divisor * 1.15)],
        ),
        yaxis=rows_axis(),
        barmode="stack",
    )
    return figure_of(traces, layout)
