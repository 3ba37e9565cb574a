"""Whose numbers are where: a row of cells for each rank, before and after a collective.

Rank k writes its numbers into decimal digit k: rank 0 has 1, 2, 3, rank 1 has 10, 20, 30. So a
sum still tells what went into it: 1011 is made of ranks 0, 1 and 3. The picture reads the digits
and gives each cell a stripe in the colour of each rank that is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.colors import GRID, INK, rank_color
from dlcourse.figures.plotly_parts import figure_of, layout_of
from dlcourse.words.strings import t

if TYPE_CHECKING:
    import plotly.graph_objects as go

_GAP = 0.07  # between cells, of a cell's size
_STRIPE = (0.52, 1 - _GAP)  # lower and upper edge of the coloured part; the number is below
_LEFT_OF_PANEL = {"xref": "paper", "xanchor": "right", "xshift": -6}
_ROW = 32  # pixels
_COLUMNS = 4  # panels in a row
MAX_DIGITS = 5  # longer numbers do not fit into their cells: the colours tell enough


def buffers_figure(
    stages: Mapping[str, Sequence[Sequence[int]]],
    *,
    title: str,
    lang: str | None = None,
) -> go.Figure:
    """A panel for each stage; in it a row for each rank and a cell for each of its numbers.

    stages: the panel's label -> for each rank its numbers, in digits as the module says. All
            stages have as many ranks; rows may differ in length. 0 is an empty cell.

    A frame marks the numbers that were not there in the stage before.
    """
    panels = {label: [[int(v) for v in row] for row in rows] for label, rows in stages.items()}
    sizes = {len(rows) for rows in panels.values()}
    if len(sizes) != 1:
        raise ValueError(f"stages has panels of {sorted(sizes)} ranks; give the same in each.")
    ranks = sizes.pop()
    places = max(len(row) for rows in panels.values() for row in rows)
    columns = min(_COLUMNS, len(panels))
    stripes: list[list[tuple[float, float, float, str]]] = [[] for _ in range(ranks)]
    numbers: list[tuple[float, float, str]] = []
    frames: list[tuple[float, float, bool]] = []
    notes: list[dict[str, Any]] = []
    before: list[list[int]] | None = None
    for n, (label, rows) in enumerate(panels.items()):
        left, top = (n % columns) * (places + 0.8), -(n // columns) * (ranks + 0.9)
        notes.append(_note(left, top + 0.06, label, "bottom", 13))
        for rank, row in enumerate(rows):
            bottom = top - rank - 1
            if n % columns == 0:
                name = t("figure.rank", lang, rank=rank)
                notes.append(_note(0, bottom + 0.5, name, "middle", 12) | _LEFT_OF_PANEL)
            for place, value in enumerate(row):
                x = left + place
                who = sources(value)
                if any(rank >= ranks for rank in who):
                    raise ValueError(
                        f"stages[{label!r}] holds {value}, which has more digits than the "
                        f"{ranks} ranks; give rank k's numbers in digit k."
                    )
                for i, owner in enumerate(who):
                    width = (1 - 2 * _GAP) / len(who)
                    stripes[owner].append((x + _GAP + (i + 0.5) * width, bottom, width, str(value)))
                changed = value and before is not None and _at(before, rank, place) != value
                frames.append((x, bottom, bool(changed)))
                if who and len(str(value)) <= MAX_DIGITS:
                    numbers.append((x + 0.5, bottom + 0.28, str(value)))
        before = rows
    traces = [
        _frame([f for f in frames if not f[2]], GRID, 1, ""),
        *(
            _stripes(cells, rank_color(rank), t("figure.rank", lang, rank=rank))
            for rank, cells in enumerate(stripes)
        ),
        _frame([f for f in frames if f[2]], INK, 2.5, t("collectives.changed", lang)),
        {
            "type": "scatter",
            "mode": "text",
            "x": [x for x, _, _ in numbers],
            "y": [y for _, y, _ in numbers],
            "text": [text for _, _, text in numbers],
            "textfont": {"size": 12, "color": INK},
            "hoverinfo": "skip",
            "showlegend": False,
        },
    ]
    lines = -(-len(panels) // columns)
    width = columns * (places + 0.8) - 0.8
    layout = layout_of(
        title,
        height=round(90 + lines * (ranks + 0.9) * _ROW),
        xaxis={"visible": False, "range": [-0.05, width + 0.05], "fixedrange": True},
        yaxis={
            "visible": False,
            "range": [-lines * (ranks + 0.9) + 0.85, 0.65],
            "fixedrange": True,
        },
        barmode="overlay",
        annotations=notes,
    )
    layout["margin"] |= {"l": 66, "r": 12, "b": 44}
    return figure_of([trace for trace in traces if trace["x"]], layout)


def sources(value: int) -> list[int]:
    """Ranks whose digit in `value` is not 0: 1011 -> [0, 1, 3]."""
    return [k for k, digit in enumerate(reversed(str(abs(value)))) if digit != "0"]


def _at(rows: Sequence[Sequence[int]], rank: int, place: int) -> int:
    return rows[rank][place] if place < len(rows[rank]) else 0


def _note(x: float, y: float, text: str, anchor: str, size: int) -> dict:
    return {
        "x": x,
        "y": y,
        "text": text,
        "showarrow": False,
        "xanchor": "left",
        "yanchor": anchor,
        "font": {"size": size, "color": INK},
    }


def _stripes(cells: Sequence[tuple[float, float, float, str]], color: str, name: str) -> dict:
    low, high = _STRIPE
    return {
        "type": "bar",
        "name": name,
        "x": [round(x, 4) for x, *_ in cells],
        "y": [high - low] * len(cells),
        "base": [round(bottom + low, 4) for _, bottom, *_ in cells],
        "width": [round(width, 4) for _, _, width, _ in cells],
        "marker": {"color": color, "line": {"width": 0}},
        "hovertext": [text for *_, text in cells],
        "hoverinfo": "text+name",
    }


def _frame(cells: Sequence[tuple[float, float, bool]], color: str, width: float, name: str) -> dict:
    """Outlines as one line that is lifted between cells."""
    x: list[float | None] = []
    y: list[float | None] = []
    near, far = _GAP / 2, 1 - _GAP / 2
    for left, bottom, _ in cells:
        x += [left + near, left + far, left + far, left + near, left + near, None]
        y += [bottom + near, bottom + near, bottom + far, bottom + far, bottom + near, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "name": name,
        "line": {"color": color, "width": width},
        "hoverinfo": "skip",
        "showlegend": bool(name),
    }
