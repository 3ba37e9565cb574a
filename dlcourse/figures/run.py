"""Static figures of one run, from plain data: plotly `go.Figure`, never `FigureWidget`.

Each title says what was found, computed from the data. Backgrounds are transparent and text is a
grey that reads on white and on black, because a stored figure cannot know the reader's theme.
Long data are thinned out, so that one figure stays below 50 KB in the notebook.
Figures that compare several runs are in `charts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.colors import (
    CATEGORIES,
    RANKS,
    SPANS,
    rank_color,
)
from dlcourse.figures.plotly_parts import (
    axis_of,
    bar,
    close,
    end_labels,
    figure_of,
    kept,
    layout_of,
    line,
    present,
    rounded,
    rows_axis,
    rows_height,
    thin_series,
)
from dlcourse.words.strings import (
    t,
)
from dlcourse.words.units import (
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
MAX_LINES = 8
_OWN_WORK = ("forward", "backward", "optimizer", "compute")


def memory_figure(data: Mapping[str, Any], lang: str | None = None) -> go.Figure:
    """Bytes at the peak, stacked by category, one bar a rank. data: `Memory.data()`."""
    ranks = _ranks(data)
    totals = [r["peak_bytes"] for r in ranks]
    divisor, unit = byte_scale(max(totals, default=0))
    labels = [t("figure.rank", lang, rank=r["rank"]) for r in ranks]
    traces: list[dict] = []
    for name in present(data["categories"], [r["at_peak"] for r in ranks]):
        counts = [r["at_peak"].get(name, 0) for r in ranks]
        traces.append(
            bar(
                y=labels,
                x=[rounded(c / divisor) for c in counts],
                name=t(f"category.{name}", lang),
                color=CATEGORIES[name],
                text=[digits(c / divisor) if c else "" for c in counts],
                hovertext=[f"{t(f'category.{name}', lang)}: {human_bytes(c)}" for c in counts],
            )
        )
    traces.append(end_labels(labels, [v / divisor for v in totals], map(human_bytes, totals)))
    layout = layout_of(
        _memory_title(ranks, totals, lang),
        height=rows_height(len(ranks)),
        xaxis=axis_of(t("figure.axis.peak_memory", lang, unit=unit), rangemode="tozero"),
        yaxis=rows_axis(),
        barmode="stack",
    )
    return figure_of(traces, layout)


def memory_over_time_figure(data: Mapping[str, Any], lang: str | None = None) -> go.Figure:
    """Live bytes by category over time, on the rank with the highest peak.

    data: `Memory.data()`.
    """
    one = max(_ranks(data), key=lambda rank: rank["peak_bytes"])
    series = thin_series(one["series"] or [[0.0] + [0] * len(data["categories"])])
    times = [row[0] for row in series]
    divisor, unit = byte_scale(max(one["peak_bytes"], *(sum(row[1:]) for row in series)))
    second, second_unit = second_scale(max(times))
    x = [rounded(v / second, 5) for v in times]
    traces: list[dict] = []
    for i, name in enumerate(data["categories"]):
        y = [row[i + 1] for row in series]
        if any(y):
            traces.append(
                {
                    "type": "scatter",
                    "x": x,
                    "y": [rounded(v / divisor) for v in y],
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
        rank=one["rank"],
        bytes=human_bytes(one["peak_bytes"]),
        time=human_seconds(max(0.0, top[0])),
        category=t(f"category.{biggest}", lang),
        share=_percent(share),
    )
    layout = layout_of(
        title,
        height=340,
        xaxis=axis_of(t("figure.axis.time", lang, unit=second_unit)),
        yaxis=axis_of(t("figure.axis.memory", lang, unit=unit), rangemode="tozero"),
        hovermode="x unified",
    )
    return figure_of(traces, layout)


def timeline_figure(
    data: Mapping[str, Any],
    lang: str | None = None,
    *,
    steps: int | None = None,
) -> go.Figure:
    """What each rank did when: own work above, communication and waiting below it.

    data:  `Timeline.data()`.
    steps: one step's number, from 0; None is all of them, or the last three where there are more
           than six.
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
            bar(
                y=[lane + (-0.19 if own else 0.22) for lane, *_ in spans],
                x=[rounded((e - s) / scale, 5) for _, s, e, _ in spans],
                base=[rounded((s - start) / scale, 5) for _, s, _, _ in spans],
                width=0.4 if own else 0.3,
                name=label,
                color=SPANS[kind],
                hatch=kind == "waiting",
                hovertext=[f"{name or label}<br>{human_seconds(e - s)}" for _, s, e, name in spans],
            )
        )
        traces[-1]["legendrank"] = 1000 + list(SPANS).index(kind)
    layout = layout_of(
        _timeline_title(ranks, data, lang),
        height=rows_height(len(ranks), row=46),
        xaxis=axis_of(
            t("figure.axis.time", lang, unit=unit) + window,
            range=[0, rounded((end - start) / scale, 5)],
        ),
        yaxis=axis_of(
            "",
            tickvals=list(range(len(ranks))),
            ticktext=[t("figure.rank", lang, rank=r["rank"]) for r in ranks],
            range=[len(ranks) - 0.45, -0.55],
            showgrid=False,
        ),
        barmode="overlay",
    )
    return figure_of(traces, layout)


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
    equal = all(
        close(sent(r, op), sent(ranks[0], op))
        and r["ops"].get(op, {}).get("calls") == ranks[0]["ops"].get(op, {}).get("calls")
        for r in ranks
        for op in ops
    )
    shown = ranks[:1] if equal else ranks
    traces: list[dict] = []
    for rank in shown:
        counts = [sent(rank, op) for op in ops]
        texts = [f"{human_bytes(c)} · {note(rank, op)}" for c, op in zip(counts, ops, strict=True)]
        color = CATEGORIES["communication"] if equal else rank_color(rank["rank"])
        name = _every_rank(ranks, lang) if equal else t("figure.rank", lang, rank=rank["rank"])
        traces.append(
            bar(
                y=ops,
                x=[rounded(c / divisor) for c in counts],
                name=name,
                color=color,
                text=texts if equal else [human_bytes(c) if c else "" for c in counts],
                outside=True,
                hovertext=[f"{name}: {text}" for text in texts],
            )
        )
    rows = len(ops) * (1 if equal else 0.55 * len(shown))
    wire = (data.get("wire") or {}).get("sent_per_rank")
    layout = layout_of(
        _comm_title(ranks, ops, lang),
        subtitle=t("figure.comm.wire", lang, bytes=human_bytes(wire)) if wire else "",
        height=rows_height(max(1, math.ceil(rows))) + (0 if equal else 20),
        # Room for the text beside the longest bar.
        xaxis=axis_of(
            t("figure.axis.sent", lang, unit=unit),
            range=[0, rounded((most or 1) / divisor * (1.45 if equal else 1.15))],
            showticklabels=most > 0,
        ),
        yaxis=rows_axis(),
        barmode="group",
        showlegend=True,
    )
    return figure_of(traces, layout)


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
        line(
            [i + 1 for i in kept(len(steps))],
            [rounded(steps[i] / scale) for i in kept(len(steps))],
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
    layout = layout_of(
        title,
        height=320,
        xaxis=axis_of(t("figure.axis.step", lang), tickformat="d"),
        yaxis=axis_of(t("figure.axis.step_time", lang, unit=unit), rangemode="tozero"),
    )
    return figure_of(traces, layout)


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
    key = "even" if len(ranks) > 1 else "one"
    return t(f"figure.memory.{key}", lang, rank=top["rank"], bytes=human_bytes(high), **found)


def _timeline_title(ranks: Sequence[Mapping], data: Mapping, lang: str | None) -> str:
    wall = data["wall_s"] or 1.0
    waits = [r["totals"].get("waiting", 0.0) for r in ranks]
    work = [sum(r["totals"].get(kind, 0.0) for kind in _OWN_WORK) for r in ranks]
    share = sum(waits) / len(waits) / wall
    # Nobody waits for a rank that takes part in no communication
    pairs = zip(waits, ranks, strict=True)
    taking_part = [(w, r["rank"]) for w, r in pairs if w or r["totals"].get("communication")]
    if share > 0.2 and max(waits) > 1.5 * min(taking_part)[0]:
        late = min(taking_part)[1]
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
    if close(high, low):
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
    ranks: Sequence[Mapping], wall: float, steps: int | None, lang: str | None
) -> tuple[float, float, str]:
    """Start and end in seconds of what is drawn, and a note that says so."""
    count = min((len(r["steps"]) for r in ranks), default=0)
    if steps is None:
        if count <= 6:
            ends = [s[1] for r in ranks for s in r["spans"]]
            return 0.0, max([wall, *ends]) or 1.0, ""
        first, last = count - 3, count - 1
    elif 0 <= steps < count:
        first = last = steps
    else:
        raise ValueError(
            f"steps={steps!r}: this run has {count} steps; give a number from 0 to {count - 1}."
        )
    start = min(r["steps"][first][0] for r in ranks)
    end = max(r["steps"][last][1] for r in ranks)
    which = f"{first + 1}" if first == last else f"{first + 1}-{last + 1}"
    return start, end, t("figure.window", lang, steps=which, count=count)
