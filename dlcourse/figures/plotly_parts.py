"""What all figures share: bars, lines, axes in units that fit, the layout, thinning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.colors import GRID, INK, text_on
from dlcourse.words.units import byte_scale, digits, human_bytes, human_seconds, second_scale

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_POINTS = 300  # of one line
_FONT = "system-ui, 'Noto Sans KR', 'Noto Sans CJK KR', 'Apple SD Gothic Neo', sans-serif"
_NO_COLOR = "rgba(0,0,0,0)"


def rounded(value: float, significant: int = 4) -> float:
    """As many digits as a pixel needs: JSON of 0.30000000000000004 is 19 bytes."""
    return float(f"{value:.{significant}g}")


def kept(count: int) -> list[int]:
    """Positions to keep of `count` points, the first and the last among them."""
    if count <= MAX_POINTS:
        return list(range(count))
    return [round(i * (count - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)]


def thin_series(series: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """At most MAX_POINTS rows; of each group the one with the largest total: peaks must stay."""
    if len(series) <= MAX_POINTS:
        return list(series)
    size = math.ceil(len(series) / (MAX_POINTS - 1))
    groups = [series[i : i + size] for i in range(0, len(series) - 1, size)]
    return [max(group, key=lambda row: sum(row[1:])) for group in groups] + [series[-1]]


def bar(
    *,
    y: Sequence,
    x: Sequence[float],
    name: str,
    color: str,
    text: Sequence[str] | None = None,
    hovertext: Sequence[str] | None = None,
    base: Sequence[float] | None = None,
    width: float | None = None,
    outside: bool = False,
    hatch: bool = False,
) -> dict:
    trace: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "y": list(y),
        "x": list(x),
        "name": name,
        "marker": {"color": color, "line": {"width": 0}},
        "hovertext": list(hovertext or []),
        "hoverinfo": "text",
        "textfont": {"size": 12, "color": INK if outside else text_on(color)},
        "textposition": "outside" if outside else "inside",
        "textangle": 0,
        "insidetextanchor": "middle",
        "cliponaxis": False,
    }
    if hatch:
        trace["marker"]["pattern"] = {
            "shape": "/",
            "size": 6,
            "solidity": 0.25,
            "fillmode": "overlay",
            "fgcolor": "#404858",
        }
    if text is not None:
        trace["text"] = list(text)
    if base is not None:
        trace["base"] = list(base)
    if width is not None:
        trace["width"] = width
    return trace


def line(
    x: Sequence[float],
    y: Sequence[float],
    name: str,
    color: str,
    *,
    order: int = 0,
    markers: bool = False,
) -> dict:
    """A line whose dash and marker differ with `order`, so that colour is not alone."""
    dash = ("solid", "dash", "dot", "dashdot")[order % 4]
    symbol = ("circle", "square", "diamond", "x", "triangle-up", "cross", "star", "hexagon")
    return {
        "type": "scatter",
        "x": list(x),
        "y": list(y),
        "name": name,
        "mode": "lines+markers" if markers else "lines",
        "line": {"color": color, "width": 2, "dash": dash},
        "marker": {"color": color, "size": 8, "symbol": symbol[order % 8]},
        "cliponaxis": False,  # a marker on an axis is drawn whole
    }


def end_labels(y: Sequence[str], x: Sequence[float], texts: Any) -> dict:
    """The total beside each stacked bar."""
    return {
        "type": "scatter",
        "x": [rounded(v) for v in x],
        "y": list(y),
        "mode": "text",
        "text": [f" {text}" for text in texts],
        "textposition": "middle right",
        "textfont": {"color": INK, "size": 13},
        "cliponaxis": False,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def axis_of(title: str, **more: Any) -> dict:
    return {
        "title": {"text": title, "font": {"size": 13}},
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": INK,
        "tickfont": {"size": 12},
        "ticklabelstandoff": 3,  # a marker on an axis must not lie on its number
        "automargin": True,
        **more,
    }


def rows_axis() -> dict:
    return axis_of("", type="category", autorange="reversed", showgrid=False, ticksuffix="  ")


def rows_height(rows: int, row: int = 34) -> int:
    return 150 + row * max(rows, 2)


def unit_axis(
    values: Sequence[float], unit: str, title: str, *, log: bool = False, ticks: bool = False
) -> tuple[dict, float, Any]:
    """An axis in a unit that fits, the divisor, and a function that writes one value.

    What is not finite, such as the loss of a run that has diverged, has no place on it.
    """
    values = [v for v in values if math.isfinite(v)]
    largest = max((abs(v) for v in values), default=0)
    if unit == "bytes":
        divisor, shown = (1.0, "") if ticks else byte_scale(largest)
    elif unit == "seconds":
        divisor, shown = second_scale(largest)
    else:
        divisor, shown = 1.0, unit
    axis = axis_of(f"{title} ({shown})" if shown else title)
    if log:
        axis["type"] = "log"
        axis["exponentformat"] = "none"
        axis["tickvals"] = _log_ticks([abs(v) / divisor for v in values if v])
        axis["ticktext"] = [f"{v:g}" if v < 1 else digits(v) for v in axis["tickvals"]]
    elif min(values, default=0) >= 0:
        axis["rangemode"] = "tozero"
    if ticks and unit == "bytes":
        # Powers of two are where people look for sizes of buffers: 1 KiB, 4 KiB, ...
        low = math.floor(math.log2(max(1, min((v for v in values if v > 0), default=1))))
        high = math.ceil(math.log2(max(1, largest)))
        step = max(1, math.ceil((high - low) / 9))
        axis["tickvals"] = [2**p for p in range(low, high + 1, step)]
        axis["ticktext"] = [human_bytes(v) for v in axis["tickvals"]]
    elif ticks and len(values) <= 12:
        axis["tickvals"] = [rounded(v / divisor, 6) for v in values]
        axis["ticktext"] = [digits(v / divisor) for v in values]
    return axis, divisor, lambda v: with_unit(v, unit)


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Powers of ten; below two decades 2 and 5 times them as well, or there would be one tick."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    steps = (1, 2, 5) if high < 100 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return [rounded(v) for v in ticks if low / 3 <= v <= high * 3]


def with_unit(value: float, unit: str) -> str:
    if unit == "bytes":
        return human_bytes(value)
    if unit == "seconds":
        return human_seconds(value)
    return f"{digits(value)} {unit}".rstrip()


def wrapped(labels: Sequence[str], width: int = 28) -> list[str]:
    """Long labels on two lines: the bars need the room."""
    out = []
    for label in labels:
        middle = label.rfind(" ", 0, width) if len(label) > width else -1
        out.append(label if middle < 1 else f"{label[:middle]}<br>{label[middle + 1 :]}")
    return out


def layout_of(title: str, *, height: int, subtitle: str = "", **more: Any) -> dict:
    lines = _title_lines(title)
    extra = 20 * (len(lines) - 1) + (24 if subtitle else 0)
    below = 84 if more.get("showlegend", True) else 62
    return {
        # Without a template of its own a figure carries 6 KB of plotly's.
        "template": {},
        "title": {
            "text": "<br>".join(lines),
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 12 + 10 * (len(lines) - 1), "l": 12},
            "font": {"size": 16},
            **({"subtitle": {"text": subtitle, "font": {"size": 13}}} if subtitle else {}),
        },
        "font": {"family": _FONT, "size": 13, "color": INK},
        "paper_bgcolor": _NO_COLOR,
        "plot_bgcolor": _NO_COLOR,
        "height": height + extra - 84 + below,
        "margin": {"l": 60, "r": 60, "t": 46 + extra, "b": below},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "traceorder": "normal",
            "font": {"size": 12},
        },
        "bargap": 0.3,
        "uniformtext": {"minsize": 11, "mode": "hide"},
        "hoverlabel": {"font": {"family": _FONT}},
        **more,
    }


def _title_lines(title: str, columns: int = 96) -> list[str]:
    """A title in lines that fit 900 pixels; Korean letters are two columns wide."""
    lines = [""]
    for word in title.split(" "):
        candidate = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and sum(2 if ord(c) > 0x1100 else 1 for c in candidate) > columns:
            lines.append(word)
        else:
            lines[-1] = candidate
    return lines


def figure_of(traces: Sequence[dict], layout: dict) -> go.Figure:
    import plotly.graph_objects as go

    import dlcourse.light_nbformat  # noqa: F401  # before plotly does it, and takes longer

    return go.Figure({"data": list(traces), "layout": layout})


def present(names: Sequence[str], dicts: Sequence[Mapping[str, int]]) -> list[str]:
    return [name for name in names if any(d.get(name) for d in dicts)]


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=0.01, abs_tol=1.0)
