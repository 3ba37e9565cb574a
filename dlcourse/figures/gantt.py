"""Pipelines drawn: what each rank does when, one lane a rank, one panel above the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.colors import CATEGORIES, INK, text_on
from dlcourse.figures.plotly_parts import axis_of, bar, figure_of, layout_of, rounded
from dlcourse.words.strings import t
from dlcourse.words.units import human_seconds, second_scale

if TYPE_CHECKING:
    import plotly.graph_objects as go

# What makes a thing has the colour of the thing; no two of these rest on colour alone, for each
# bar also says what it is where there is room, and BW is hatched.
KINDS = {
    "F": CATEGORIES["activations"],
    "B": CATEGORIES["gradients"],
    "W": CATEGORIES["parameters"],
    "BW": CATEGORIES["gradients"],
}
MAX_NUMBERED = 560  # bars that carry their micro-batch's number
Span = tuple[float, float, tuple[str, int, int]]  # start, end, (kind, micro-batch, chunk)


def gantt_figure(
    panels: Mapping[str, Sequence[Sequence[Span]]],
    *,
    title: str,
    seconds: bool = False,
    lang: str | None = None,
) -> go.Figure:
    """Lanes of F, B, W and BW; the number in a bar is its micro-batch.

    panels:  the panel's label -> for each rank its spans. All start at 0 on one common axis; give
             each in a unit of its own choice, but the same for all.
    seconds: the times are seconds; else they are in units of one action.
    """
    ends = [span[1] for rows in panels.values() for row in rows for span in row]
    last = max(ends, default=1.0)
    scale, unit = second_scale(last) if seconds else (1.0, "")
    bars: dict[tuple[str, bool], list[tuple[float, float, float, str, str]]] = {}
    notes, ticks, lane = [], [], 0.0
    for label, rows in panels.items():
        notes.append(_note(lane - 0.8, label))
        for rank, row in enumerate(rows):
            ticks.append((lane, t("figure.rank", lang, rank=rank)))
            for start, end, (kind, micro_batch, chunk) in row:
                took = human_seconds(end - start) if seconds else f"{end - start:g}"
                name = f"{kind}{micro_batch}" + (f".{chunk}" if chunk else "")
                hover = f"{name}<br>{took}"
                bars.setdefault((kind, chunk > 0), []).append(
                    (lane, start, end, str(micro_batch), hover)
                )
            lane += 1
        lane += 0.85
    numbered = sum(map(len, bars.values())) <= MAX_NUMBERED
    traces = []
    for (kind, second), spans in sorted(
        bars.items(), key=lambda b: (list(KINDS).index(b[0][0]), b)
    ):
        trace = bar(
            y=[y for y, *_ in spans],
            x=[rounded((end - start) / scale, 5) for _, start, end, *_ in spans],
            base=[rounded(start / scale, 5) for _, start, *_ in spans],
            width=0.56 if second else 0.86,
            name=t(
                "pipeline_parallel.kind.thin" if second else f"pipeline_parallel.kind.{kind}", lang
            ),
            color=KINDS[kind],
            text=[text for *_, text, _ in spans] if numbered else None,
            hovertext=[hover for *_, hover in spans],
        )
        trace["marker"]["line"] = {"width": 0.6, "color": INK}
        trace["textfont"] = {"size": 10, "color": text_on(KINDS[kind])}
        if kind == "BW":
            trace["marker"]["pattern"] = {
                "shape": "/",
                "size": 7,
                "solidity": 0.12,
                "fillmode": "overlay",
                "fgcolor": "#404858",
            }
        trace["showlegend"] = not second or kind == "F"
        traces.append(trace)
    axis = (
        t("figure.axis.time", lang, unit=unit)
        if seconds
        else t("pipeline_parallel.axis.units", lang)
    )
    layout = layout_of(
        title,
        height=round(140 + 27 * lane),
        xaxis=axis_of(axis, range=[0, rounded(last / scale * 1.005, 5)]),
        yaxis=axis_of(
            "",
            tickvals=[y for y, _ in ticks],
            ticktext=[text for _, text in ticks],
            range=[lane - 0.85 - 0.45, -1.2],
            showgrid=False,
            zeroline=False,
        ),
        barmode="overlay",
        annotations=notes,
    )
    layout["uniformtext"] = {"minsize": 7, "mode": "hide"}
    return figure_of(traces, layout)


def _note(y: float, text: str) -> dict[str, Any]:
    return {
        "xref": "paper",
        "x": 0,
        "y": y,
        "text": text,
        "showarrow": False,
        "xanchor": "left",
        "yanchor": "middle",
        "font": {"size": 12, "color": INK},
    }
