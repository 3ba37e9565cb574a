"""Static figures from plain data: plotly `go.Figure`, never `FigureWidget`.

Each title says what was found, computed from the data. Backgrounds are transparent and text is a
grey that reads on white and on black, because a stored figure cannot know the reader's theme.
Long data are thinned out, so that one figure stays below 50 KB in the notebook.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.panel.colors import CATEGORIES, GRID, INK, PLAIN, RANKS, SPANS, rank_color, text_on
from dlcourse.panel.strings import t
from dlcourse.panel.units import (
    byte_scale,
    digits,
    human_bytes,
    human_count,
    human_seconds,
    rank_ranges,
    second_scale,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_SPANS = 700  # of all ranks together in one timeline
MAX_POINTS = 300  # of one line
MAX_LINES = 8
_OWN_WORK = ("forward", "backward", "optimizer", "compute")
_FONT = "system-ui, 'Noto Sans KR', 'Noto Sans CJK KR', 'Apple SD Gothic Neo', sans-serif"
_NO_COLOR = "rgba(0,0,0,0)"


def show_defaults() -> None:
    """Let figures be drawn by JupyterLab's own plotly extension, with no network.

    The plotly package brings that extension; a figure is stored as its data alone. Hosted
    notebooks (Colab, Kaggle, ...) keep the renderer that plotly chose for them. Outside a
    kernel there is nothing to set, and plotly is not imported.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        return
    import plotly.io as pio

    if "plotly_mimetype" in (pio.renderers.default or ""):
        pio.renderers.default = "plotly_mimetype"
    for name in ("plotly_mimetype", "jupyterlab", "vscode"):
        pio.renderers[name].config = {"displaylogo": False, "displayModeBar": False}


# ------------------------------------------------------------------ figures of one run


def memory_figure(data: Mapping[str, Any], lang: str | None = None) -> go.Figure:
    """Bytes at the peak, stacked by category, one bar a rank. data: `Memory.data()`."""
    ranks = _ranks(data)
    totals = [r["peak_bytes"] for r in ranks]
    divisor, unit = byte_scale(max(totals, default=0))
    labels = [t("figure.rank", lang, rank=r["rank"]) for r in ranks]
    traces: list[dict] = []
    for name in _present(data["categories"], [r["at_peak"] for r in ranks]):
        counts = [r["at_peak"].get(name, 0) for r in ranks]
        traces.append(
            _bar(
                y=labels,
                x=[_round(c / divisor) for c in counts],
                name=t(f"category.{name}", lang),
                color=CATEGORIES[name],
                text=[digits(c / divisor) if c else "" for c in counts],
                hovertext=[f"{t(f'category.{name}', lang)}: {human_bytes(c)}" for c in counts],
            )
        )
    traces.append(_end_labels(labels, [v / divisor for v in totals], map(human_bytes, totals)))
    layout = _layout(
        _memory_title(ranks, totals, lang),
        height=_rows_height(len(ranks)),
        xaxis=_axis(t("figure.axis.peak_memory", lang, unit=unit), rangemode="tozero"),
        yaxis=_rows_axis(labels),
        barmode="stack",
    )
    return _figure(traces, layout)


def memory_over_time_figure(
    data: Mapping[str, Any], lang: str | None = None, *, rank: int | None = None
) -> go.Figure:
    """Live bytes by category over time on one rank. data: `Memory.data()`.

    rank: None is the rank with the highest peak.
    """
    ranks = {r["rank"]: r for r in _ranks(data)}
    if rank is None:
        rank = max(ranks, key=lambda n: ranks[n]["peak_bytes"])
    if rank not in ranks:
        raise ValueError(f"rank={rank!r} was not measured; use one of {rank_ranges(list(ranks))}.")
    one = ranks[rank]
    series = _thin_series(one["series"] or [[0.0] + [0] * len(data["categories"])])
    times = [row[0] for row in series]
    divisor, unit = byte_scale(max(one["peak_bytes"], *(sum(row[1:]) for row in series)))
    second, second_unit = second_scale(max(times))
    x = [_round(v / second, 5) for v in times]
    traces: list[dict] = []
    for i, name in enumerate(data["categories"]):
        y = [row[i + 1] for row in series]
        if any(y):
            traces.append(
                {
                    "type": "scatter",
                    "x": x,
                    "y": [_round(v / divisor) for v in y],
                    "name": t(f"category.{name}", lang),
                    # Storage appears and goes at once: a step, not a slope.
                    "line": {"shape": "hv", "width": 0.5, "color": CATEGORIES[name]},
                    "mode": "lines",
                    "fillcolor": CATEGORIES[name],
                    "stackgroup": "memory",
                    "hovertemplate": f"%{{y:.3~g}} {unit}",
                }
            )
    top = max(series, key=lambda row: sum(row[1:]))
    biggest, share = _biggest(one["at_peak"])
    title = t(
        "figure.memory_over_time",
        lang,
        rank=rank,
        bytes=human_bytes(one["peak_bytes"]),
        time=human_seconds(max(0.0, top[0])),
        category=t(f"category.{biggest}", lang),
        share=_percent(share),
    )
    layout = _layout(
        title,
        height=340,
        xaxis=_axis(t("figure.axis.time", lang, unit=second_unit)),
        yaxis=_axis(t("figure.axis.memory", lang, unit=unit), rangemode="tozero"),
        hovermode="x unified",
    )
    return _figure(traces, layout)


def timeline_figure(
    data: Mapping[str, Any],
    lang: str | None = None,
    *,
    steps: int | Sequence[int] | None = None,
) -> go.Figure:
    """What each rank did when: own work above, communication and waiting below it.

    data:  `Timeline.data()`.
    steps: one step's number or (first, last), from 0; None is all of them, or the last three
           where there are more than six.
    """
    ranks = _ranks(data)
    start, end, window = _window(ranks, data["wall_s"], steps, lang)
    scale, unit = second_scale(end - start)
    least = (end - start) / 1500  # less than a pixel
    kinds: dict[str, list[tuple[int, float, float, str]]] = {}
    for lane, rank in enumerate(ranks):
        # Where one collective is under way while another waits, the one under way is on top.
        for kind in sorted(SPANS, key=("waiting", *SPANS).index):
            spans = [s for s in rank["spans"] if s[2] == kind and s[1] > start and s[0] < end]
            kinds.setdefault(kind, []).extend(
                (lane, max(s[0], start), min(s[1], end), s[3]) for s in spans
            )
    gap = least
    joined = {kind: _join(spans, gap) for kind, spans in kinds.items()}
    while sum(map(len, joined.values())) > MAX_SPANS:
        gap *= 2
        joined = {kind: _join(spans, gap) for kind, spans in kinds.items()}
    traces: list[dict] = []
    for kind, spans in joined.items():
        if not spans:
            continue
        own = kind in _OWN_WORK
        label = t(f"figure.span.{kind}", lang)
        traces.append(
            _bar(
                y=[lane + (-0.19 if own else 0.22) for lane, *_ in spans],
                x=[_round((e - s) / scale, 5) for _, s, e, _ in spans],
                base=[_round((s - start) / scale, 5) for _, s, _, _ in spans],
                width=0.4 if own else 0.3,
                name=label,
                color=SPANS[kind],
                hatch=kind == "waiting",
                hovertext=[f"{name or label}<br>{human_seconds(e - s)}" for _, s, e, name in spans],
            )
        )
        traces[-1]["legendrank"] = 1000 + list(SPANS).index(kind)
    layout = _layout(
        _timeline_title(ranks, data, lang),
        height=_rows_height(len(ranks), row=46),
        xaxis=_axis(
            t("figure.axis.time", lang, unit=unit) + window,
            range=[0, _round((end - start) / scale, 5)],
        ),
        yaxis=_axis(
            "",
            tickvals=list(range(len(ranks))),
            ticktext=[t("figure.rank", lang, rank=r["rank"]) for r in ranks],
            range=[len(ranks) - 0.45, -0.55],
            showgrid=False,
        ),
        barmode="overlay",
    )
    return _figure(traces, layout)


def comm_figure(data: Mapping[str, Any], lang: str | None = None) -> go.Figure:
    """Bytes that each rank sends, by collective. data: `Comm.data()`.

    One bar for all ranks where they send the same, else one bar a rank.
    """
    ranks = _ranks(data)
    ops: list[str] = []
    for op in (o["op"] for o in data["ops"]):
        if op not in ops:
            ops.append(op)

    def sent(rank: Mapping[str, Any], op: str) -> float:
        return rank["ops"].get(op, {}).get("wire_bytes", 0.0)

    def note(rank: Mapping[str, Any], op: str) -> str:
        row = rank["ops"].get(op)
        return _calls(row, lang) if row else ""

    most = max((sent(r, op) for r in ranks for op in ops), default=0)
    divisor, unit = byte_scale(most)
    alike = all(
        _close(sent(r, op), sent(ranks[0], op))
        and r["ops"].get(op, {}).get("calls") == ranks[0]["ops"].get(op, {}).get("calls")
        for r in ranks
        for op in ops
    )
    shown = ranks[:1] if alike else ranks
    traces: list[dict] = []
    for rank in shown:
        counts = [sent(rank, op) for op in ops]
        texts = [f"{human_bytes(c)} · {note(rank, op)}" for c, op in zip(counts, ops, strict=True)]
        color = CATEGORIES["communication"] if alike else rank_color(rank["rank"])
        name = _every_rank(ranks, lang) if alike else t("figure.rank", lang, rank=rank["rank"])
        traces.append(
            _bar(
                y=ops,
                x=[_round(c / divisor) for c in counts],
                name=name,
                color=color,
                text=texts if alike else [human_bytes(c) if c else "" for c in counts],
                outside=True,
                hovertext=[f"{name}: {text}" for text in texts],
            )
        )
    rows = len(ops) * (1 if alike else 0.55 * len(shown))
    wire = (data.get("wire") or {}).get("sent_per_rank")
    layout = _layout(
        _comm_title(ranks, ops, lang),
        subtitle=t("figure.comm.wire", lang, bytes=human_bytes(wire)) if wire else "",
        height=_rows_height(max(1, math.ceil(rows))) + (0 if alike else 20),
        # Room for the text beside the longest bar.
        xaxis=_axis(
            t("figure.axis.sent", lang, unit=unit),
            range=[0, _round((most or 1) / divisor * (1.45 if alike else 1.15))],
            showticklabels=most > 0,
        ),
        yaxis=_rows_axis(ops),
        barmode="group",
        showlegend=True,
    )
    return _figure(traces, layout)


def throughput_figure(data: Mapping[str, Any], lang: str | None = None) -> go.Figure:
    """Time of each step, one line a rank (the slowest rank's where there are many).

    data: `Throughput.data()`.
    """
    ranks = [r for r in _ranks(data) if r["step_s"]]
    longest = [s for r in ranks for s in r["step_s"]]
    scale, unit = second_scale(max(longest, default=1.0))
    lines = [
        (t("figure.rank", lang, rank=r["rank"]), rank_color(r["rank"]), r["step_s"]) for r in ranks
    ]
    if len(lines) > MAX_LINES:
        worst = [max(steps) for steps in zip(*(r["step_s"] for r in ranks), strict=False)]
        lines = [(t("figure.slowest_rank", lang), RANKS[0], worst)]
    traces = [
        _line(
            [i + 1 for i in _thin(len(steps))],
            [_round(steps[i] / scale) for i in _thin(len(steps))],
            name,
            color,
            order=n,
        )
        for n, (name, color, steps) in enumerate(lines)
    ]
    if not longest:
        title = t("figure.throughput.none", lang)
    elif data["tokens_per_s"]:
        title = t(
            "figure.throughput",
            lang,
            rate=human_count(round(data["tokens_per_s"])),
            time=human_seconds(data["step_s"]),
            steps=data["steps"],
        )
    else:
        title = t(
            "figure.throughput.time",
            lang,
            time=human_seconds(data["step_s"]),
            steps=data["steps"],
        )
    layout = _layout(
        title,
        height=320,
        xaxis=_axis(t("figure.axis.step", lang), tickformat="d"),
        yaxis=_axis(t("figure.axis.step_time", lang, unit=unit), rangemode="tozero"),
    )
    return _figure(traces, layout)


# ------------------------------------------------------------------ figures of many runs


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
    x_axis, x_div, x_text = _unit_axis(x, x_unit, x_title, log=log_x, ticks=log_x)
    flat = [v for values in series.values() for v in values]
    y_axis, y_div, y_text = _unit_axis(flat, y_unit, y_title, log=log_y)
    traces: list[dict] = []
    for n, (name, values) in enumerate(series.items()):
        color = (colors or {}).get(name) or RANKS[n % len(RANKS)]
        keep = _thin(len(x))
        traces.append(
            _line(
                [_round(x[i] / x_div, 6) for i in keep],
                [_round(values[i] / y_div) for i in keep],
                name,
                color,
                order=n,
                markers=len(x) <= 40,
            )
        )
        traces[-1]["hovertext"] = [f"{x_text(x[i])}: {y_text(values[i])}" for i in keep]
        traces[-1]["hoverinfo"] = "text+name"
    if best and flat:
        choose = min if best == "min" else max
        name, i = choose(
            ((name, i) for name, values in series.items() for i in range(len(values))),
            key=lambda pair: series[pair[0]][pair[1]],
        )
        traces.append(
            {
                "type": "scatter",
                "x": [_round(x[i] / x_div, 6)],
                "y": [_round(series[name][i] / y_div)],
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
    layout = _layout(
        title or "", height=360, xaxis=x_axis, yaxis=y_axis, showlegend=len(traces) > 1
    )
    return _figure(traces, layout)


def predicted_vs_measured_figure(
    rows: Sequence[Mapping[str, Any]], lang: str | None = None, *, title: str | None = None
) -> go.Figure:
    """Measured over predicted, one line for each row; 1 is a perfect prediction.

    rows: [{"label": str, "predicted": float, "measured": float, "unit": "bytes"|"seconds"|...}].
    """
    usable = [r for r in rows if r["predicted"]]
    if not usable:
        raise ValueError("rows holds no prediction other than 0; give at least one.")
    ratios = [r["measured"] / r["predicted"] for r in usable]
    labels = _wrapped([r["label"] for r in usable])
    worst = max(range(len(usable)), key=lambda i: abs(math.log(max(ratios[i], 1e-9))))
    gap = max(abs(ratio - 1) for ratio in ratios)
    if title is None and gap <= 0.05:
        title = t("figure.predicted.close", lang, gap=f"{gap:.1%}")
    elif title is None:
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
            measured=_with_unit(r["measured"], r.get("unit", "")),
            predicted=_with_unit(r["predicted"], r.get("unit", "")),
        )
        for r in usable
    ]
    near = [abs(ratio - 1) <= 0.05 for ratio in ratios]
    trace = _bar(
        y=labels,
        x=[_round(ratio) for ratio in ratios],
        name="",
        color=CATEGORIES["parameters"],
        text=texts,
        outside=True,
        hovertext=texts,
    )
    # Far from the prediction is another colour, and a hatch for those who do not see it.
    trace["marker"]["color"] = [CATEGORIES["parameters" if ok else "gradients"] for ok in near]
    trace["marker"]["pattern"] = {"shape": ["" if ok else "/" for ok in near], "size": 6}
    layout = _layout(
        title or "",
        height=_rows_height(len(usable)),
        xaxis=_axis(t("figure.axis.ratio", lang), range=[0, _round(max(*ratios, 1.0) * 1.6)]),
        yaxis=_rows_axis(labels),
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
    return _figure([trace], layout)


def cost_model_figure(
    sizes: Sequence[float],
    measured: Sequence[float] | Mapping[str, Sequence[float]],
    fitted: Sequence[float] | Mapping[str, Sequence[float]],
    lang: str | None = None,
    *,
    title: str | None = None,
) -> go.Figure:
    """Seconds over bytes, both axes logarithmic: points measured, lines from the alpha-beta model.

    sizes:  bytes, in ascending order.
    measured, fitted: seconds for each size; dicts of the same names for several algorithms.
    """
    points = measured if isinstance(measured, Mapping) else {"": measured}
    lines = fitted if isinstance(fitted, Mapping) else {"": fitted}
    if set(points) != set(lines):
        raise ValueError(
            f"fitted has the names {sorted(lines)} and measured {sorted(points)}; give the same."
        )
    every = [v for values in (*points.values(), *lines.values()) for v in values if v > 0]
    x_axis, x_div, _ = _unit_axis(
        sizes, "bytes", t("figure.axis.buffer", lang), log=True, ticks=True
    )
    y_axis, y_div, _ = _unit_axis(every, "seconds", t("figure.axis.time_plain", lang), log=True)
    x = [_round(s / x_div, 6) for s in sizes]
    traces: list[dict] = []
    for n, name in enumerate(points):
        color = RANKS[n % len(RANKS)]
        labels = (
            (name, t("figure.cost.fitted_name", lang, name=name))
            if name
            else (t("figure.measured", lang), t("figure.cost.fitted", lang))
        )
        values = [_round(v / y_div) for v in points[name]]
        dots = _line(x, values, labels[0], color, order=n, markers=True)
        dots["mode"] = "markers"
        model = _line(x, [_round(v / y_div) for v in lines[name]], labels[1], color, order=0)
        model["line"]["dash"] = ("solid", "dash", "dot", "dashdot")[n % 4]
        traces += [dots, model]
    if title is None:
        best = min(lines, key=lambda name: lines[name][-1])
        per_byte = (lines[best][-1] - lines[best][0]) / ((sizes[-1] - sizes[0]) or 1)
        latency = max(0.0, lines[best][0] - per_byte * sizes[0])
        title = t(
            "figure.cost" if best == "" else "figure.cost.best",
            lang,
            name=best,
            latency=human_seconds(latency),
            bandwidth=human_bytes(1 / per_byte if per_byte > 0 else 0),
        )
    layout = _layout(title, height=380, xaxis=x_axis, yaxis=y_axis)
    return _figure(traces, layout)


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
    x_axis, div, text = _unit_axis([*flat, reference or 0], unit, axis)
    most = max([*flat, reference or 0], default=1) or 1
    x_axis["range"] = [0, _round(most / div * 1.22)]
    rows = _wrapped(labels)
    traces: list[dict] = []
    for n, (name, numbers) in enumerate(groups.items()):
        several = isinstance(values, Mapping)
        color = (colors[n] if colors else RANKS[n % len(RANKS)]) if several else PLAIN
        trace = _bar(
            y=rows,
            x=[_round(v / div) for v in numbers],
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
    layout = _layout(
        title or "",
        height=_rows_height(math.ceil(len(labels) * max(1, 0.7 * len(groups)))),
        xaxis=x_axis,
        yaxis=_rows_axis(rows),
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
    return _figure(traces, layout)


# ------------------------------------------------------------------ titles


def _memory_title(ranks: Sequence[Mapping], totals: Sequence[int], lang: str | None) -> str:
    low, high = min(totals), max(totals)
    top = ranks[totals.index(high)]
    biggest, share = _biggest(top["at_peak"])
    found = {"category": t(f"category.{biggest}", lang), "share": _percent(share)}
    if not high:
        return t("figure.memory.none", lang)
    if len(ranks) > 1 and high > 1.05 * low:
        bottom = ranks[totals.index(low)]
        return t(
            "figure.memory.uneven",
            lang,
            top=top["rank"],
            high=human_bytes(high),
            bottom=bottom["rank"],
            low=human_bytes(low),
            **found,
        )
    return t("figure.memory.even", lang, bytes=human_bytes(high), **found)


def _timeline_title(ranks: Sequence[Mapping], data: Mapping, lang: str | None) -> str:
    wall = data["wall_s"] or 1.0
    waits = [r["totals"].get("waiting", 0.0) for r in ranks]
    work = [sum(r["totals"].get(kind, 0.0) for kind in _OWN_WORK) for r in ranks]
    share = sum(waits) / len(waits) / wall
    if share > 0.2 and max(waits) > 1.5 * min(waits):
        late = ranks[waits.index(min(waits))]["rank"]
        return t("figure.timeline.waiting", lang, share=_percent(share), rank=late)
    if data["hidden_fraction"] is None:
        busy = sum(work) / len(work) / wall
        return t("figure.timeline.alone", lang, share=_percent(min(busy, 1.0)))
    comm = sum(r["totals"].get("communication", 0.0) for r in ranks) / len(ranks)
    return t(
        "figure.timeline.hidden",
        lang,
        hidden=_percent(data["hidden_fraction"]),
        time=human_seconds(comm),
    )


def _comm_title(ranks: Sequence[Mapping], ops: Sequence[str], lang: str | None) -> str:
    sent = [r["wire_bytes"] for r in ranks]
    if not ops:
        return t("figure.comm.none", lang)
    if not any(sent):
        return t("figure.comm.empty", lang, calls=max(r["calls"] for r in ranks))
    high, low = max(sent), min(sent)
    top = ranks[sent.index(high)]
    main = max(top["ops"], key=lambda op: top["ops"][op]["wire_bytes"])
    share = _percent(top["ops"][main]["wire_bytes"] / high)
    if _close(high, low):
        found = t("figure.comm.even", lang, bytes=human_bytes(high), op=main, share=share)
    else:
        found = t(
            "figure.comm.uneven",
            lang,
            top=top["rank"],
            high=human_bytes(high),
            bottom=ranks[sent.index(low)]["rank"],
            low=human_bytes(low),
            op=main,
        )
    return found


def _biggest(at_peak: Mapping[str, int]) -> tuple[str, float]:
    name = max(at_peak, key=lambda key: at_peak[key])
    return name, at_peak[name] / (sum(at_peak.values()) or 1)


def _percent(share: float) -> str:
    """A part that is not the whole is never "100%"."""
    return ">99%" if 0.995 <= share < 1 - 1e-9 else f"{share:.0%}"


def _calls(row: Mapping[str, Any], lang: str | None) -> str:
    return t("figure.calls", lang, calls=f"{row['calls']:g}", bytes=human_bytes(row["bytes"]))


def _every_rank(ranks: Sequence[Mapping], lang: str | None) -> str:
    return t("figure.every_rank", lang, ranks=rank_ranges([r["rank"] for r in ranks]))


def _ranks(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    ranks = list(data["ranks"])
    if not ranks:
        raise ValueError("data holds no ranks: run a recorded %%ranks cell first (not --fast).")
    return ranks


# ------------------------------------------------------------------ thinning


def _round(value: float, significant: int = 4) -> float:
    """As many digits as a pixel needs: JSON of 0.30000000000000004 is 19 bytes."""
    return float(f"{value:.{significant}g}")


def _thin(count: int) -> list[int]:
    """Positions to keep of `count` points, the first and the last among them."""
    if count <= MAX_POINTS:
        return list(range(count))
    return [round(i * (count - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)]


def _thin_series(series: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """At most MAX_POINTS rows; of each group the one with the largest total: peaks must stay."""
    if len(series) <= MAX_POINTS:
        return list(series)
    size = math.ceil(len(series) / (MAX_POINTS - 1))
    groups = [series[i : i + size] for i in range(0, len(series) - 1, size)]
    return [max(group, key=lambda row: sum(row[1:])) for group in groups] + [series[-1]]


def _join(
    spans: Sequence[tuple[int, float, float, str]], gap: float
) -> list[tuple[int, float, float, str]]:
    """Spans of one kind, those of a lane that are less than `gap` apart joined."""
    out: list[list] = []
    for lane, start, end, name in sorted(spans):
        if out and out[-1][0] == lane and start - out[-1][2] < gap and out[-1][2] - start < gap:
            short = end - start < gap or out[-1][2] - out[-1][1] < gap
            if short or name == out[-1][3]:
                out[-1][2] = max(out[-1][2], end)
                if name != out[-1][3] and not out[-1][3].endswith("…"):
                    out[-1][3] += " …"
                continue
        out.append([lane, start, end, name])
    return [tuple(span) for span in out]


def _window(
    ranks: Sequence[Mapping], wall: float, steps: int | Sequence[int] | None, lang: str | None
) -> tuple[float, float, str]:
    """Start and end in seconds of what is drawn, and a note that says so."""
    count = min((len(r["steps"]) for r in ranks), default=0)
    if steps is None:
        if count <= 6:
            ends = [s[1] for r in ranks for s in r["spans"]]
            return 0.0, max([wall, *ends]) or 1.0, ""
        steps = (count - 3, count - 1)
    first, last = (steps, steps) if isinstance(steps, int) else (steps[0], steps[-1])
    if not 0 <= first <= last < count:
        raise ValueError(
            f"steps={steps!r}: this run has {count} steps; give a number from 0 to {count - 1}, "
            "or the first and the last as a pair."
        )
    start = min(r["steps"][first][0] for r in ranks)
    end = max(r["steps"][last][1] for r in ranks)
    which = f"{first + 1}" if first == last else f"{first + 1}-{last + 1}"
    return start, end, t("figure.window", lang, steps=which, count=count)


# ------------------------------------------------------------------ plotly


def _bar(
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


def _line(
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
    }


def _end_labels(y: Sequence[str], x: Sequence[float], texts: Any) -> dict:
    """The total beside each stacked bar."""
    return {
        "type": "scatter",
        "x": [_round(v) for v in x],
        "y": list(y),
        "mode": "text",
        "text": [f" {text}" for text in texts],
        "textposition": "middle right",
        "textfont": {"color": INK, "size": 13},
        "cliponaxis": False,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _axis(title: str, **more: Any) -> dict:
    return {
        "title": {"text": title, "font": {"size": 13}},
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": INK,
        "tickfont": {"size": 12},
        "automargin": True,
        **more,
    }


def _rows_axis(labels: Sequence[str]) -> dict:
    return _axis("", type="category", autorange="reversed", showgrid=False, ticksuffix="  ")


def _rows_height(rows: int, row: int = 34) -> int:
    return 150 + row * max(rows, 2)


def _unit_axis(
    values: Sequence[float], unit: str, title: str, *, log: bool = False, ticks: bool = False
) -> tuple[dict, float, Any]:
    """An axis in a unit that fits, the divisor, and a function that writes one value."""
    largest = max((abs(v) for v in values), default=0)
    if unit == "bytes":
        divisor, shown = (1.0, "") if ticks else byte_scale(largest)
    elif unit == "seconds":
        divisor, shown = second_scale(largest)
    else:
        divisor, shown = 1.0, unit
    axis = _axis(f"{title} ({shown})" if shown else title)
    if log:
        axis["type"] = "log"
        axis["dtick"] = 1
        axis["exponentformat"] = "none"
    elif min(values, default=0) >= 0:
        axis["rangemode"] = "tozero"
    if ticks and unit == "bytes":
        # Powers of two are where people look for sizes of buffers: 1 KiB, 4 KiB, ...
        low = math.floor(math.log2(max(1, min(v for v in values if v > 0))))
        high = math.ceil(math.log2(max(1, largest)))
        step = max(1, math.ceil((high - low) / 9))
        axis["tickvals"] = [2**p for p in range(low, high + 1, step)]
        axis["ticktext"] = [human_bytes(v) for v in axis["tickvals"]]
        axis.pop("dtick")
    elif ticks and len(values) <= 12:
        axis["tickvals"] = [_round(v / divisor, 6) for v in values]
        axis["ticktext"] = [digits(v / divisor) for v in values]
        axis.pop("dtick", None)
    return axis, divisor, lambda v: _with_unit(v, unit)


def _with_unit(value: float, unit: str) -> str:
    if unit == "bytes":
        return human_bytes(value)
    if unit == "seconds":
        return human_seconds(value)
    return f"{digits(value)} {unit}".rstrip()


def _wrapped(labels: Sequence[str], width: int = 28) -> list[str]:
    """Long labels on two lines: the bars need the room."""
    out = []
    for label in labels:
        middle = label.rfind(" ", 0, width) if len(label) > width else -1
        out.append(label if middle < 1 else f"{label[:middle]}<br>{label[middle + 1 :]}")
    return out


def _layout(title: str, *, height: int, subtitle: str = "", **more: Any) -> dict:
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


def _figure(traces: Sequence[dict], layout: dict) -> go.Figure:
    import plotly.graph_objects as go

    return go.Figure({"data": list(traces), "layout": layout})


def _present(names: Sequence[str], dicts: Sequence[Mapping[str, int]]) -> list[str]:
    return [name for name in names if any(d.get(name) for d in dicts)]


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=0.01, abs_tol=1.0)
