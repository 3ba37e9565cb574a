"""Goodput of long runs on machines that fail, by cluster size; the pictures of lesson 15's end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.colors import CATEGORIES, INK, RANKS, SPANS
from dlcourse.figures.picture import Picture, stacked_columns
from dlcourse.figures.plotly_parts import axis_of, figure_of, layout_of, line
from dlcourse.figures.tables import Table
from dlcourse.formulas.goodput import (
    best_interval,
    checkpointed_goodput,
    daly_interval,
    first_order_goodput,
    job_goodput,
    job_mtbf,
    young_interval,
)
from dlcourse.words.strings import t
from dlcourse.words.units import digits

if TYPE_CHECKING:
    import plotly.graph_objects as go

NODE = 8  # GPUs
SIZES = (8, 64, 512, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
LLAMA = 16384  # GPUs of the run whose failures are the default
REPAIR = 24.0  # hours until a failed node is back, in the explorable
# What the time goes to has the colour of what a rank does then
PARTS = {
    "useful": SPANS["compute"],
    "checkpoint": SPANS["communication"],
    "restart": SPANS["optimizer"],
    "lost": SPANS["backward"],
    "straggling": SPANS["forward"],
    "waiting": SPANS["waiting"],
}


def goodput_picture(
    node_mtbf: float,
    checkpoint: float,
    restart: float = 10.0,
    spares: float = 3.0,
    spread: float = 0.0,
    interval: float | None = None,
) -> Picture:
    """What a run's time goes to by cluster size, for `explore`.

        explore(goodput_picture, node_mtbf=[1000, 2500, 6300], checkpoint=[10, 60, 300],
                restart=[3, 10], spares=[0, 1, 2, 4])

    Args:
        node_mtbf: hours between two failures of a node of 8 GPUs; Llama 3's was 6,335.
        checkpoint: seconds to write one.
        restart: minutes from a failure until training goes on.
        spares: spare nodes beside each hundred, rounded up; each failed node is away for a day.
        spread: percent by which a node's steps differ from one another (standard deviation).
        interval: minutes of work between checkpoints; None is the best for each size.

    Raises:
        ValueError: times or spares below 0, a checkpoint longer than its interval.
    """
    rows = {}
    for gpus in SIZES:
        nodes = gpus // NODE
        shares = job_goodput(
            nodes,
            node_mtbf=3600 * node_mtbf,
            checkpoint=checkpoint,
            interval=None if interval is None else 60 * interval,
            restart=60 * restart,
            spares=math.ceil(spares * nodes / 100),
            repair=3600 * REPAIR,
            spread=spread / 100,
        )
        rows[f"{gpus:,}"] = {t(f"goodput.part.{name}"): share for name, share in shares.items()}
    useful = t("goodput.part.useful")
    hours = job_mtbf(node_mtbf, LLAMA // NODE)
    title = t(
        "goodput.explore.title",
        small=f"{rows['512'][useful]:.0%}",
        llama=f"{rows[f'{LLAMA:,}'][useful]:.0%}",
        large=f"{rows[f'{SIZES[-1]:,}'][useful]:.0%}",
        hours=digits(hours),
    )
    return stacked_columns(
        rows,
        title=title,
        axis=t("goodput.gpus"),
        colors={t(f"goodput.part.{name}"): color for name, color in PARTS.items()},
        marks={f"{LLAMA:,}": (0.9, t("goodput.explore.llama"))},
    )


def show_goodput(
    curves: Mapping[str, Sequence[Mapping[str, float]]], published: Mapping[str, Any]
) -> go.Figure:
    """Goodput by GPUs: lines by the closed form, points simulated, and what was published.

    Args:
        curves: a name -> rows of ``dlcourse.plan.failures.goodput_by_size``.
        published: ``read_record("goodput_published")``.
    """
    traces, colors = [], (RANKS[4], RANKS[6], RANKS[7], CATEGORIES["other"])
    for order, (name, rows) in enumerate(curves.items()):
        gpus = [row["gpus"] for row in rows]
        color = colors[order % 4]
        by_formula = [100 * row["goodput"] for row in rows]
        traces.append(line(gpus, by_formula, name, color, order=order))
        points = line(gpus, [100 * row["simulated"] for row in rows], "", color, order=order)
        points |= {"mode": "markers", "showlegend": False}
        traces.append(points)
    ends = {name: 100 * rows[-1]["goodput"] for name, rows in curves.items()}
    worst = max(abs(row["goodput"] - row["simulated"]) for rows in curves.values() for row in rows)
    for row in published["rows"]:
        if "goodput_above" in row:
            traces.append(
                {
                    "type": "scatter",
                    "x": [row["gpus"]],
                    "y": [100 * row["goodput_above"]],
                    "mode": "markers+text",
                    "text": [t("goodput.above", name=row["name"])],
                    "textposition": "top right",
                    "textfont": {"color": INK, "size": 12},
                    "marker": {"symbol": "triangle-up", "size": 13, "color": INK},
                    "showlegend": False,
                }
            )
    ticks = sorted({int(row["gpus"]) for rows in curves.values() for row in rows})
    title = t(
        "goodput.title",
        gpus=f"{ticks[-1]:,}",
        low=f"{min(ends.values()):.0f}%",
        high=f"{max(ends.values()):.0f}%",
        apart=digits(100 * worst),
    )
    layout = layout_of(
        title,
        height=420,
        xaxis=axis_of(
            t("goodput.gpus"),
            type="log",
            tickvals=ticks,
            ticktext=[f"{gpus:,}" for gpus in ticks],
        ),
        yaxis=axis_of(t("goodput.axis"), range=[0, 103]),
    )
    return figure_of(traces, layout)


def show_intervals(checkpoint: float, simulated: Mapping[float, float]) -> Table:
    """Young's, Daly's and the best interval, and the goodput of each: where Young's is wrong.

    Args:
        checkpoint: minutes to write one.
        simulated: minutes between failures of the job -> the interval that was best in the
            simulation, of ``dlcourse.plan.failures.best_simulated``.
    """
    table = []
    for mtbf, found in simulated.items():
        young, best = young_interval(checkpoint, mtbf), best_interval(checkpoint, mtbf)
        times = [young, daly_interval(checkpoint, mtbf), best]
        goodputs = [
            checkpointed_goodput(x, checkpoint=checkpoint, mtbf=mtbf) for x in (young, best)
        ]
        says = first_order_goodput(young, checkpoint=checkpoint, mtbf=mtbf)
        table.append(
            [
                digits(mtbf / checkpoint),
                *(digits(time / checkpoint) for time in times),
                digits(found / checkpoint),
                f"{100 * says:.1f}%",
                *(f"{100 * value:.1f}%" for value in goodputs),
            ]
        )
    keys = ("mtbf", "young", "daly", "best", "simulated", "says", "at_young", "at_best")
    header = [t(f"goodput.interval.{key}") for key in keys]
    return Table(header, table, caption=t("goodput.interval"))


def show_published_failures(published: Mapping[str, Any]) -> Table:
    """Published runs: how often they failed, and what that makes of one node."""
    keys = ("run", "gpus", "hours", "node_hours", "source")
    rows = []
    for row in published["rows"]:
        nodes = row["gpus"] // NODE
        node_hours = nodes * row["hours_between"]
        rows.append(
            [
                f"{row['name']} ({row['gpu']})",
                f"{row['gpus']:,}",
                digits(row["hours_between"]),
                f"{node_hours:,.0f}",
                row["cited"],
            ]
        )
    return Table(
        [t(f"goodput.published.{key}") for key in keys], rows, caption=t("goodput.published")
    )
