"""Static figures that compare runs: sweeps, predictions, the cost model, bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.colors import (
    CATEGORIES,
    INK,
    PLAIN,
    RANKS,
)
from dlcourse.figures.held import largest
from dlcourse.figures.plotly_parts import (
    axis_of,
    bar,
    figure_of,
    kept,
    layout_of,
    line,
    rounded,
    rows_axis,
    rows_height,
    unit_axis,
    with_unit,
    wrapped,
)
from dlcourse.words.strings import (
    t,
)
from dlcourse.words.units import (
    digits,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go


def sweep_figure(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    x_title: str,
    y_title: str,
    title: str | None = None,
    x_unit: str = "",
    y_unit: str = "",
    log_x: bool = False,
    log_y: bool = False,
    best: str | None = None,
    colors: Mapping[str, str] | None = None,
    lang: str | None = None,
) -> go.Figure:
    """One line for each entry of `series` over `x`.

    x_unit, y_unit: "bytes" and "seconds" are shown as KiB, MiB, ms, ...; other text as it is.
    best:   "min" or "max" marks the best point of all, which the title then states unless
            `title` is given.
    colors: for some of the series; the others take the next free one.
    """
    if best not in (None, "min", "max"):
        raise ValueError(f'best={best!r} is not one of "min", "max", None; use one.')
    for name, values in series.items():
        if len(values) != len(x):
            raise ValueError(
                f"series[{name!r}] has {len(values)} values for {len(x)} of x; give as many."
            )
    x_axis, x_div, x_text = unit_axis(x, x_unit, x_title, log=log_x, ticks=log_x)
    flat = [v for values in series.values() for v in values]
    y_axis, y_div, y_text = unit_axis(flat, y_unit, y_title, log=log_y)
    traces: list[dict] = []
    for n, (name, values) in enumerate(series.items()):
        color = (colors or {}).get(name) or RANKS[n % len(RANKS)]
        keep = kept(len(x))
        traces.append(
            line(
                [rounded(x[i] / x_div, 6) for i in keep],
                [rounded(values[i] / y_div) for i in keep],
                name,
                color,
                order=n,
                markers=len(x) <= 40,
            )
        )
        traces[-1]["hovertext"] = [f"{x_text(x[i])}: {y_text(values[i])}" for i in keep]
        traces[-1]["hoverinfo"] = "text+name"
    # NaN is neither smaller nor larger than a number: `min` would take it where it comes first
    points = [
        (n, i) for n, values in series.items() for i, v in enumerate(values) if math.isfinite(v)
    ]
    if best and points:
        choose = min if best == "min" else max
        name, i = choose(points, key=lambda pair: series[pair[0]][pair[1]])
        traces.append(
            {
                "type": "scatter",
                "x": [rounded(x[i] / x_div, 6)],
                "y": [rounded(series[name][i] / y_div)],
                "mode": "markers",
                "marker": {
                    "symbol": "circle-open",
                    "size": 17,
                    "color": INK,
                    "line": {"width": 2},
                },
                "name": t("figure.best", lang),
                "hoverinfo": "skip",
            }
        )
        if title is None:
            title = t(
                "figure.sweep.one" if len(series) == 1 else "figure.sweep.many",
                lang,
                name=name,
                x=x_text(x[i]),
                y=y_text(series[name][i]),
            )
    layout = layout_of(
        title or "", height=360, xaxis=x_axis, yaxis=y_axis, showlegend=len(traces) > 1
    )
    return figure_of(traces, layout)


def predicted_vs_measured_figure(
    rows: Sequence[Mapping[str, Any]], lang: str | None = None
) -> go.Figure:
    """Measured over predicted, one line for each row; 1 is a perfect prediction.

    rows: [{"label": str, "predicted": float, "measured": float, "unit": "bytes"|"seconds"|...}].
    """
    usable = [r for r in rows if r["predicted"]]
    if not usable:
        raise ValueError("rows holds no prediction other than 0; give at least one.")
    ratios = [r["measured"] / r["predicted"] for r in usable]
    labels = wrapped([r["label"] for r in usable])
    factors = [abs(math.log(max(ratio, 1e-9))) for ratio in ratios]
    worst = factors.index(largest(factors))
    gap = largest(abs(ratio - 1) for ratio in ratios)
    if gap <= 0.05:
        title = t("figure.predicted.close", lang, gap=f"{gap:.1%}")
    else:
        title = t(
            "figure.predicted.far",
            lang,
            label=usable[worst]["label"],
            ratio=digits(ratios[worst]),
        )
    texts = [
        t(
            "figure.predicted.text",
            lang,
            measured=with_unit(r["measured"], r.get("unit", "")),
            predicted=with_unit(r["predicted"], r.get("unit", "")),
        )
        for r in usable
    ]
    near = [abs(ratio - 1) <= 0.05 for ratio in ratios]
    trace = bar(
        y=labels,
        x=[rounded(ratio) for ratio in ratios],
        name="",
        color=CATEGORIES["parameters"],
        text=texts,
        outside=True,
        hovertext=texts,
    )
    # Far from the prediction is another colour, and a hatch for those who do not see it.
    trace["marker"]["color"] = [CATEGORIES["parameters" if ok else "gradients"] for ok in near]
    trace["marker"]["pattern"] = {"shape": ["" if ok else "/" for ok in near], "size": 6}
    layout = layout_of(
        title,
        height=rows_height(len(usable)),
        xaxis=axis_of(t("figure.axis.ratio", lang), range=[0, rounded(max(*ratios, 1.0) * 1.6)]),
        yaxis=rows_axis(),
        shapes=[
            {
                "type": "line",
                "x0": 1,
                "x1": 1,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": INK, "width": 2, "dash": "dash"},
            }
        ],
        showlegend=False,
    )
    return figure_of([trace], layout)


def cost_model_figure(
    sizes: Sequence[float],
    measured: Mapping[str, Sequence[float]],
    fitted: Mapping[str, Sequence[float]],
    lang: str | None = None,
    *,
    title: str,
    colors: Mapping[str, str],
) -> go.Figure:
    """Seconds over bytes, both axes logarithmic: points measured, lines from the alpha-beta model.

    sizes:  bytes, in ascending order.
    measured, fitted: algorithm -> seconds for each size.
    colors: of each algorithm.
    """
    if set(measured) != set(fitted):
        raise ValueError(
            f"fitted has the names {sorted(fitted)} and measured {sorted(measured)}; give the same."
        )
    every = [v for values in (*measured.values(), *fitted.values()) for v in values if v > 0]
    x_axis, x_div, _ = unit_axis(
        sizes, "bytes", t("figure.axis.buffer", lang), log=True, ticks=True
    )
    y_axis, y_div, _ = unit_axis(every, "seconds", t("figure.axis.time_plain", lang), log=True)
    x = [rounded(s / x_div, 6) for s in sizes]
    traces: list[dict] = []
    for n, name in enumerate(measured):
        values = [rounded(v / y_div) for v in measured[name]]
        dots = line(x, values, name, colors[name], order=n, markers=True)
        dots["mode"] = "markers"
        values = [rounded(v / y_div) for v in fitted[name]]
        model = line(x, values, t("figure.cost.fitted_name", lang, name=name), colors[name])
        model["line"]["dash"] = ("solid", "dash", "dot", "dashdot")[n % 4]
        traces += [dots, model]
    return figure_of(traces, layout_of(title, height=380, xaxis=x_axis, yaxis=y_axis))


def bars_figure(
    labels: Sequence[str],
    values: Sequence[float] | Mapping[str, Sequence[float]],
    *,
    axis: str,
    title: str | None = None,
    unit: str = "",
    colors: Sequence[str] | None = None,
    reference: float | None = None,
    lang: str | None = None,
) -> go.Figure:
    """Horizontal bars with their numbers, one for each label.

    values: one list; or a dict of lists for several bars at each label.
    unit:   "bytes" and "seconds" are shown as KiB, MiB, ms, ...; other text as it is.
    colors: one for each label; or one for each entry of `values`.
    reference: a value that a dashed line marks.
    """
    groups = values if isinstance(values, Mapping) else {"": values}
    for name, numbers in groups.items():
        if len(numbers) != len(labels):
            raise ValueError(
                f"values{[name] if name else ''} has {len(numbers)} numbers for "
                f"{len(labels)} labels; give as many."
            )
    flat = [v for numbers in groups.values() for v in numbers]
    x_axis, div, text = unit_axis([*flat, reference or 0], unit, axis)
    most = max([*flat, reference or 0], default=1) or 1
    x_axis["range"] = [0, rounded(most / div * 1.22)]
    rows = wrapped(labels)
    traces: list[dict] = []
    for n, (name, numbers) in enumerate(groups.items()):
        several = isinstance(values, Mapping)
        color = (colors[n] if colors else RANKS[n % len(RANKS)]) if several else PLAIN
        trace = bar(
            y=rows,
            x=[rounded(v / div) for v in numbers],
            name=name,
            color=color,
            text=[text(v) for v in numbers],
            outside=True,
            hovertext=[text(v) for v in numbers],
        )
        if colors and not several:
            trace["marker"]["color"] = list(colors)
        traces.append(trace)
    if title is None and len(groups) == 1 and len(flat) > 1 and min(flat) > 0:
        low, high = flat.index(min(flat)), flat.index(max(flat))
        title = t(
            "figure.bars",
            lang,
            high=labels[high],
            low=labels[low],
            ratio=digits(flat[high] / flat[low]),
        )
    layout = layout_of(
        title or "",
        height=rows_height(math.ceil(len(labels) * max(1, 0.7 * len(groups)))),
        xaxis=x_axis,
        yaxis=rows_axis(),
        barmode="group",
        showlegend=len(groups) > 1,
    )
    if reference is not None:
        layout["shapes"] = [
            {
                "type": "line",
                "x0": reference / div,
                "x1": reference / div,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": INK, "width": 2, "dash": "dash"},
            }
        ]
    return figure_of(traces, layout)
