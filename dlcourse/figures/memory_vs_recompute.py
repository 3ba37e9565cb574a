"""One figure: memory against recomputation, a mark for each place to put checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dlcourse.figures.colors import INK, RANKS
from dlcourse.figures.plotly_parts import axis_of, figure_of, layout_of, line, rounded
from dlcourse.words.strings import t
from dlcourse.words.units import byte_scale, human_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

Point = tuple[float, float]  # FLOPs on top in percent, bytes


def memory_vs_recompute_figure(
    predicted: Mapping[str, Sequence[Point]],
    measured: Mapping[str, Sequence[Point]],
    *,
    title: str,
    mine: Point | None = None,
    lang: str | None = None,
) -> go.Figure:
    """Bytes over additional FLOPs: lines are predicted, marks are measured.

    Args:
        predicted: a curve for each family of placements.
        measured: points; those of the same name as a curve take its colour.
        mine: the learner's own placement, a large ring.

    Raises:
        ValueError: nothing was measured.
    """
    everything = [point for points in measured.values() for point in points]
    if not everything:
        raise ValueError("measured holds no point: give at least one")
    divisor, unit = byte_scale(max(size for _, size in everything))
    names = list(dict.fromkeys([*predicted, *measured]))
    traces = []
    for order, name in enumerate(names):
        color = RANKS[order % len(RANKS)]
        for points, lines in ((predicted.get(name), True), (measured.get(name), False)):
            if not points:
                continue
            x, y = [rounded(more) for more, _ in points], [rounded(n / divisor) for _, n in points]
            trace = line(x, y, name, color, order=order, markers=not lines)
            trace["mode"] = "lines" if lines else "markers"
            trace["marker"]["size"] = 10
            trace["legendgroup"], trace["showlegend"] = name, not lines or name not in measured
            trace["hovertext"] = [f"{name}: +{more:.1f}%, {human_bytes(n)}" for more, n in points]
            trace["hoverinfo"] = "text"
            traces.append(trace)
    if mine is not None:
        traces.append(
            {
                "type": "scatter",
                "x": [rounded(mine[0])],
                "y": [rounded(mine[1] / divisor)],
                "name": t("checkpointing.mine"),
                "mode": "markers",
                "marker": {
                    "symbol": "circle-open",
                    "size": 20,
                    "color": INK,
                    "line": {"width": 3},
                },
                "hovertext": [f"+{mine[0]:.1f}%, {human_bytes(mine[1])}"],
                "hoverinfo": "text",
            }
        )
    layout = layout_of(
        title,
        height=400,
        xaxis=axis_of(t("checkpointing.axis.more", lang), range=[-2, 36]),
        yaxis=axis_of(t("checkpointing.axis.peak", lang, unit=unit), rangemode="tozero"),
    )
    return figure_of(traces, layout)
