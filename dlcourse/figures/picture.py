"""A small picture as SVG text: it takes its colours of words and lines from JupyterLab's theme.

An SVG of a few KB can be changed in place at every move of a slider; a plotly figure can be changed
in place only as a `FigureWidget`, which brings 5 MB with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

from dlcourse.figures.colors import CATEGORIES, INK, PLAIN, text_on
from dlcourse.words.strings import t

WIDTH = 880  # in units of the picture, which is drawn as wide as its cell, and no wider than this
_LEFT, _RIGHT = 150, 100  # the rows' names, and the totals
_TITLE_COLUMNS = 92  # of a line of the title; Korean letters are two columns wide
_FONT = "system-ui, 'Noto Sans KR', 'Noto Sans CJK KR', 'Apple SD Gothic Neo', sans-serif"
# Outside JupyterLab the grey that can be read on white and on black
_WORDS = f"var(--jp-content-font-color1, {INK})"
_LINES = f"var(--jp-border-color1, {INK})"
_GROUND = "var(--jp-layout-color0, transparent)"


@dataclass(frozen=True)
class Picture:
    """What a slider's position shows.

    svg:  a whole `<svg>`; it needs nothing from elsewhere.
    text: the same in words, for readers who do not see it.
    """

    svg: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.svg  # a part of the page, so that it takes the theme's colours


def stacked_bars(
    rows: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    axis: str,
    limit: float,
    totals: Mapping[str, str],
    mark: tuple[float, str] | None = None,
) -> Picture:
    """Horizontal bars, one a row, cut into the course's categories.

    rows:   label -> {category: length}, lengths in the unit of the axis.
    title:  what the picture shows, as a sentence.
    axis:   the axis' name with its unit.
    limit:  where the axis ends, the same at all positions, so that the bars can be compared.
    totals: label -> what stands behind the bar.
    mark:   a length that a dashed line marks, and its name.

    Raises:
        ValueError: a category is unknown, or a bar is longer than the limit.
    """
    unknown = {name for sizes in rows.values() for name in sizes} - set(CATEGORIES)
    if unknown:
        raise ValueError(f"rows holds {sorted(unknown)}: give some of {', '.join(CATEGORIES)}")
    scale = (WIDTH - _LEFT - _RIGHT) / limit
    lines = _lines(title)
    top = 14 + 22 * len(lines)
    parts = _heading(lines)
    bottom = top + 46 * len(rows)
    parts += _axis(limit, scale, axis, top, bottom)
    said, behind = [title], []
    for i, (label, sizes) in enumerate(rows.items()):
        y, x = top + 8 + 46 * i, float(_LEFT)
        parts.append(_text(_LEFT - 10, y + 20, label, anchor="end"))
        if (total := sum(sizes.values())) > limit * 1.001:
            raise ValueError(f"the bar {label!r} is {total:g} long, and the axis ends at {limit:g}")
        for name, color in CATEGORIES.items():
            if width := sizes.get(name, 0) * scale:
                parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="30" ')
                parts[-1] += f'fill="{color}"/>'
                if width > 44:
                    size = f"{sizes[name]:.1f}"
                    at = x + width / 2
                    parts.append(_text(at, y + 20, size, "middle", size=12, fill=text_on(color)))
                x += width
        behind.append(_haloed(_text(x + 8, y + 20, totals[label])))
        shares = ", ".join(f"{t(f'category.{n}')} {v:.1f}" for n, v in sizes.items() if v)
        said.append(f"{label}: {totals[label]} ({axis}: {shares})")
    if mark is not None:
        x = _LEFT + mark[0] * scale
        dashed = f'stroke="{_WORDS}" stroke-width="2" stroke-dasharray="5 4"'
        parts.append(f'<path d="M{x:.1f} {top}V{bottom + 4}" {dashed}/>')
        parts.append(_text(x, bottom + 44, mark[1], "middle", size=12))
        said.append(mark[1])
    parts += behind  # they can be read where they stand on the dashed line
    x = 12.0
    seen = [name for name in CATEGORIES if any(sizes.get(name) for sizes in rows.values())]
    for name in seen:
        parts.append(f'<rect x="{x}" y="{bottom + 54}" width="12" height="12" ')
        parts[-1] += f'fill="{CATEGORIES[name]}"/>'
        word = t(f"category.{name}")
        parts.append(_text(x + 18, bottom + 65, word))
        x += 18 + 8 * _columns(word) + 20
    return _picture(parts, said, height=bottom + 78)


def columns(
    rows: Mapping[str, Sequence[float]], *, title: str, axis: str, limit: float, mark: float
) -> Picture:
    """Small charts below each other, a column for each value; all of one scale.

    rows:  label -> values, as many in each row, in %.
    axis:  what the columns are; their numbers, from 0 on, stand below them.
    limit: what the height of a chart stands for; a longer column is cut there.
    mark:  a value that a dashed line marks in each chart.
    """
    lines = _lines(title)
    parts = _heading(lines)
    top, tall = 30 + 22 * len(lines), 64
    count = max(len(values) for values in rows.values())
    wide = (WIDTH - _LEFT - 20) / count
    said, y = [title], top
    for label, values in rows.items():
        bottom = y + tall
        parts.append(_text(_LEFT - 10, bottom - 4, label, anchor="end"))
        at = bottom - tall * mark / limit
        dashed = f'stroke="{_WORDS}" stroke-dasharray="5 4" stroke-opacity=".6"'
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{WIDTH - 20}" {dashed}/>')
        parts.append(f'<path d="M{_LEFT} {bottom}H{WIDTH - 20}" stroke="{_LINES}"/>')
        for number, value in enumerate(values):
            x, high = _LEFT + wide * number, tall * min(value, limit) / limit
            parts.append(
                f'<rect x="{x + 0.15 * wide:.1f}" y="{bottom - high:.1f}" '
                f'width="{0.7 * wide:.1f}" height="{high:.1f}" fill="{PLAIN}"/>'
            )
            at = bottom - high - 4  # it may be that of the dashed line
            parts.append(_haloed(_text(x + wide / 2, at, f"{value:.0f}%", "middle", size=12)))
        said.append(f"{label}: {', '.join(f'{value:.0f}%' for value in values)}")
        y = bottom + 26
    for number in range(count):
        parts.append(_text(_LEFT + wide * (number + 0.5), y - 6, str(number), "middle", size=12))
    parts.append(_text(_LEFT - 10, y - 6, axis, anchor="end", size=12))
    return _picture(parts, said, height=y + 6)


def bars(
    rows: Mapping[str, float], *, title: str, axis: str, limit: float, texts: Mapping[str, str]
) -> Picture:
    """Horizontal bars, one a row, with words behind each.

    rows:  label -> length, in the unit of the axis.
    limit: where the axis ends, the same at all positions, so that the bars can be compared.
    texts: label -> what stands behind the bar.
    """
    right = 220  # for the words behind a bar that reaches the axis' end
    left = max(_LEFT, 22 + 7 * max(map(_columns, rows)))
    scale = (WIDTH - left - right) / limit
    lines = _lines(title)
    parts = _heading(lines)
    top = 14 + 22 * len(lines)
    bottom = top + 40 * len(rows)
    parts += _axis(limit, scale, axis, top, bottom, left=left)
    said = [title]
    for i, (label, value) in enumerate(rows.items()):
        y, wide = top + 8 + 40 * i, min(value, limit) * scale
        parts.append(_text(left - 10, y + 17, label, anchor="end"))
        parts.append(f'<rect x="{left}" y="{y}" width="{wide:.1f}" height="24" fill="{PLAIN}"/>')
        parts.append(_text(left + wide + 8, y + 17, texts[label]))
        said.append(f"{label}: {texts[label]}")
    return _picture(parts, said, height=bottom + 46)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A piece of a row of `lanes`: from where to where, its category, and words where they fit."""

    start: float
    end: float
    category: str
    words: str = ""


def lanes(rows: Mapping[str, Sequence[Bar]], *, title: str, axis: str, limit: float) -> Picture:
    """What happens when: one row for each thing that is busy, all on one axis of time.

    rows:  label -> its bars.
    limit: where the axis ends, the same at all positions of a slider.
    """
    scale = (WIDTH - _LEFT - 20) / limit
    lines = _lines(title)
    top = 14 + 22 * len(lines)
    bottom = top + 38 * len(rows)
    parts = _heading(lines) + _axis(limit, scale, axis, top, bottom)
    said = [title]
    for i, (label, row) in enumerate(rows.items()):
        y = top + 6 + 38 * i
        parts.append(_text(_LEFT - 10, y + 18, label, anchor="end"))
        for bar in row:
            x, wide = _LEFT + bar.start * scale, (min(bar.end, limit) - bar.start) * scale
            color = CATEGORIES[bar.category]
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{max(wide, 0.5):.1f}" height="27" ')
            parts[-1] += f'fill="{color}" stroke="{_GROUND}" stroke-width="{wide > 3:d}"/>'
            if bar.words and wide > 7.5 * _columns(bar.words):
                fill = text_on(color)
                parts.append(_text(x + wide / 2, y + 18, bar.words, "middle", size=12, fill=fill))
        told = ", ".join(f"{b.words} {b.start:.0f}-{b.end:.0f}".strip() for b in row[:12])
        said.append(f"{label}: {told}")
    return _picture(parts, said, height=bottom + 46)


def spans(
    rows: Mapping[str, tuple[float, float]],
    *,
    title: str,
    axis: str,
    limits: tuple[int, int],
    texts: Mapping[str, str],
    mark: str,
) -> Picture:
    """From where to where something reaches on a scale of powers of ten, one bar a row.

    rows:   label -> smallest and largest, both above 0.
    limits: powers of ten at which the axis begins and ends.
    texts:  label -> what stands below the bar.
    mark:   the label of the row that is coloured.
    """
    lines = _lines(title)
    parts = _heading(lines)
    low, high = limits
    scale = (WIDTH - _LEFT - _RIGHT) / (high - low)
    top = 14 + 22 * len(lines)
    bottom = top + 46 * len(rows)
    for tick in range(low, high + 1, 10):
        x = _LEFT + (tick - low) * scale
        parts.append(f'<path d="M{x:.1f} {top}V{bottom}" stroke="{_LINES}" stroke-opacity=".4"/>')
        parts.append(_text(x, bottom + 18, f"1e{tick}" if tick else "1", "middle", size=12))
    parts.append(_text(_LEFT + (WIDTH - _LEFT - _RIGHT) / 2, bottom + 38, axis, anchor="middle"))
    said = [title]
    for i, (label, ends) in enumerate(rows.items()):
        y = top + 6 + 46 * i
        first, last = (_LEFT + (math.log10(end) - low) * scale for end in ends)
        color = CATEGORIES["parameters"] if label == mark else PLAIN
        parts.append(_text(_LEFT - 10, y + 14, label, anchor="end"))
        parts.append(f'<rect x="{first:.1f}" y="{y}" width="{last - first:.1f}" height="18" ')
        parts[-1] += f'fill="{color}"/>'
        parts.append(_text((first + last) / 2, y + 33, texts[label], "middle", size=12))
        said.append(f"{label}: {texts[label]}")
    return _picture(parts, said, height=bottom + 46)


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """A panel of `tiles`.

    head:    its name.
    columns: their names.
    rows:    label -> for each column its words and its colour; colour "" is an empty tile.
    """

    head: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[tuple[str, str]]]


def tiles(
    panels: Sequence[Tiles],
    *,
    title: str,
    axis: str,
    groups: Mapping[str, str],
    legend: Mapping[str, str],
) -> Picture:
    """Panels of tiles beside each other, each tile with words and a colour that says the same.

    panels: with the same rows.
    axis:   what the columns are.
    groups: the first row of each group -> the group's name, left of all rows; "\\n" breaks it.
    legend: what a colour says -> the colour.
    """
    lines = _lines(title)
    parts = _heading(lines)
    top, tall, gap = 64 + 22 * len(lines), 30, 26
    wide = (WIDTH - _LEFT - gap * (len(panels) - 1)) / len(panels)
    labels = list(panels[0].rows)
    for i, label in enumerate(labels):
        parts.append(_text(_LEFT - 12, top + tall * i + 20, label, anchor="end"))
        if label in groups:
            for k, words in enumerate(groups[label].split("\n")):
                parts.append(_text(12, top + tall * i + 20 + 16 * k, words, size=12, weight=600))
            parts.append(f'<path d="M12 {top + tall * i}H{WIDTH}" stroke="{_LINES}"/>')
    said = [title]
    for number, panel in enumerate(panels):
        left, step = _LEFT + number * (wide + gap), wide / len(panel.columns)
        parts.append(_text(left + wide / 2, top - 26, panel.head, "middle", weight=600))
        for j, column in enumerate(panel.columns):
            parts.append(_text(left + step * (j + 0.5), top - 7, column, "middle", size=12))
        for i, label in enumerate(labels):
            for j, (words, color) in enumerate(panel.rows[label]):
                x, y = left + step * j, top + tall * i
                parts.append(_tile(x + 2, y + 3, step - 4, tall - 6, color))
                fill = text_on(color) if color else _WORDS
                parts.append(_text(x + step / 2, y + 20, words, "middle", size=12, fill=fill))
            each = zip(panel.columns, panel.rows[label], strict=True)
            told = ", ".join(f"{column}: {words}" for column, (words, _) in each)
            said.append(f"{panel.head}, {label}: {told}")
    bottom = top + tall * len(labels)
    parts.append(_text((_LEFT + WIDTH) / 2, bottom + 20, axis, "middle"))
    x, y = 12.0, bottom + 36
    for words, color in legend.items():
        long = 20 + 7.2 * _columns(words) + 16
        if x + long > WIDTH:
            x, y = 12.0, y + 22
        parts += [_tile(x, y, 14, 14, color), _text(x + 20, y + 12, words, size=12)]
        x += long
    return _picture(parts, said, height=y + 24)


def _tile(x: float, y: float, wide: float, high: float, color: str) -> str:
    look = f'fill="{color}"' if color else f'fill="none" stroke="{_LINES}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high}" rx="3" {look}/>'


def stacked_columns(
    rows: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    axis: str,
    colors: Mapping[str, str],
    marks: Mapping[str, tuple[float, str]],
) -> Picture:
    """Columns of 100% beside each other, cut into parts, from the bottom in the colours' order.

    rows:   label below the column -> {part: share of 1}.
    colors: words of a part -> its colour; the first part's percent stands in the column.
    marks:  label -> a share that somebody has published, and words: a line across its column.
    """
    lines = _lines(title)
    parts = _heading(lines)
    top, tall, left = 24 + 22 * len(lines), 260, 60
    bottom, step = top + tall, (WIDTH - left - 10) / len(rows)
    for percent in (0, 25, 50, 75, 100):
        y = bottom - tall * percent / 100
        parts.append(f'<path d="M{left} {y}H{WIDTH - 10}" stroke="{_LINES}" stroke-opacity=".4"/>')
        parts.append(_text(left - 8, y + 4, f"{percent}%", "end", size=12))
    said = [title]
    for i, (label, shares) in enumerate(rows.items()):
        x, y = left + step * (i + 0.12), float(bottom)
        for name, color in colors.items():
            high = tall * shares.get(name, 0.0)
            y -= high
            if high > 0.2:
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{0.76 * step:.1f}" '
                    f'height="{high:.1f}" fill="{color}"/>'
                )
        first = next(iter(colors))
        middle, share = left + step * (i + 0.5), shares.get(first, 0.0)
        inside = share > 0.08
        at = bottom - 10 if inside else bottom - tall * share - 6
        ends = accumulate(shares.get(name, 0.0) for name in colors)
        level = (bottom - at + 4) / tall
        under = next((c for c, end in zip(colors.values(), ends, strict=True) if end > level), "")
        fill = text_on(under) if under else _WORDS
        parts.append(_text(middle, at, f"{100 * share:.0f}%", "middle", size=12, fill=fill))
        parts.append(_text(middle, bottom + 18, label, "middle", size=12))
        told = ", ".join(f"{name} {100 * shares.get(name, 0.0):.1f}%" for name in colors)
        said.append(f"{label}: {told}")
        if label in marks:
            value, words = marks[label]
            y = bottom - tall * value
            parts.append(
                f'<path d="M{x - 4:.1f} {y:.1f}h{0.76 * step + 8:.1f}" stroke="#000000" '
                f'stroke-width="3"/><path d="M{x - 4:.1f} {y:.1f}h{0.76 * step + 8:.1f}" '
                'stroke="#ffffff" stroke-width="1.5" stroke-dasharray="4 3"/>'
            )
            parts.append(_haloed(_text(middle, top - 6, words, "middle", size=12)))
            said.append(words)
    parts.append(_text((left + WIDTH) / 2, bottom + 38, axis, "middle"))
    x = 12.0
    for name, color in colors.items():
        parts += [_tile(x, bottom + 52, 14, 14, color), _text(x + 20, bottom + 64, name, size=12)]
        x += 20 + 7.2 * _columns(name) + 16
    return _picture(parts, said, height=bottom + 76)


def gantt_lanes(
    lanes: Mapping[str, Sequence[tuple[float, float, str, str, bool]]],
    *,
    title: str,
    axis: str,
    colors: Mapping[str, str],
    texts: Sequence[str],
    legend: Mapping[str, str],
) -> Picture:
    """Who does what when: a lane a row, its bars with numbers where there is room for them.

    lanes:  label -> (start, end, kind, number, thin) of each bar.
    colors: kind -> colour.
    texts:  what stands behind each lane.
    legend: words of a kind -> its colour.
    """
    lines = _lines(title)
    parts = _heading(lines)
    top, tall, left = 16 + 22 * len(lines), 34, 84
    last = max(end for bars_ in lanes.values() for _, end, *_ in bars_)
    scale = (WIDTH - left - 130) / last
    bottom = top + tall * len(lanes)
    paths: dict[str, list[str]] = {}
    words: dict[str, list[str]] = {}
    said = [title]
    for row, ((label, spans_), behind) in enumerate(zip(lanes.items(), texts, strict=True)):
        y = top + tall * row
        parts.append(_text(left - 10, y + 19, label, anchor="end"))
        parts.append(_text(left + last * scale + 8, y + 19, behind, size=12))
        begin, end = min(b[0] for b in spans_), max(b[1] for b in spans_)
        said.append(f"{label}: {begin:g}-{end:g}, {behind}")
        for start, end, kind, number, thin in spans_:
            x, wide, gap = left + start * scale, (end - start) * scale, 7 if thin else 2
            high = 28 - 2 * gap
            box = f"M{x:.1f} {y + gap}h{wide - 0.6:.1f}v{high}h{0.6 - wide:.1f}z"
            paths.setdefault(kind, []).append(box)
            if wide > 3 + 6 * len(number):
                at = f'<text x="{x + wide / 2:.1f}" y="{y + 18}">{escape(number)}</text>'
                words.setdefault(kind, []).append(at)
    for kind, boxes in paths.items():
        parts.append(f'<path d="{"".join(boxes)}" fill="{colors[kind]}"/>')
        inside = "".join(words.get(kind, []))
        look = f'text-anchor="middle" font-size="11" style="fill:{text_on(colors[kind])}"'
        parts.append(f"<g {look}>{inside}</g>")
    parts.append(f'<path d="M{left} {bottom}H{left + last * scale:.1f}" stroke="{_LINES}"/>')
    step = next(n for n in (2, 5, 10, 20, 50, 100) if last / n <= 12)
    for tick in range(0, int(last) + 1, step):
        parts.append(_text(left + tick * scale, bottom + 16, str(tick), "middle", size=12))
    parts.append(_text(left + last * scale / 2, bottom + 34, axis, "middle"))
    x = 12.0
    for name, color in legend.items():
        parts += [_tile(x, bottom + 48, 14, 14, color), _text(x + 20, bottom + 60, name, size=12)]
        x += 20 + 7.2 * _columns(name) + 16
    return _picture(parts, said, height=bottom + 72)


def sentence(words: str) -> Picture:
    """One line of words, where there is nothing to draw yet."""
    return _picture([_text(12, 22, words)], [words], height=34)


def flow_picture(
    columns: Sequence[Mapping[str, bool]],
    *,
    heads: Sequence[str],
    title: str,
    lines: Sequence[str],
) -> Picture:
    """Columns of boxes, some of them lit; each lit one is joined to the lit ones of the next.

    Two columns that are lit alike are joined row by row.

    columns: label -> lit, from left to right.
    heads:   the columns' names.
    title:   what the picture shows, as a sentence.
    lines:   what stands below in fixed-width letters, such as commands.
    """
    wide, gap = 250, 40
    head = _lines(title)
    top = 26 + 22 * len(head)
    parts = [_text(12, 22 + 22 * i, line, size=16, weight=600) for i, line in enumerate(head)]
    rows = max(len(column) for column in columns)
    said = [title]
    for i, (name, column) in enumerate(zip(heads, columns, strict=True)):
        x = 12 + i * (wide + gap)
        parts.append(_text(x, top + 12, name, size=12))
        for j, (label, lit) in enumerate(column.items()):
            y = top + 22 + 36 * j
            shape = f'<rect x="{x}" y="{y}" width="{wide}" height="28" rx="5" '
            color = CATEGORIES["communication"]
            look = f'fill="{color}"' if lit else f'fill="none" stroke="{_LINES}"'
            parts.append(f"{shape}{look}/>")
            fill, weight = (text_on(color), 600) if lit else (_WORDS, 400)
            parts.append(_text(x + 12, y + 19, label, fill=fill, weight=weight))
            following = list(columns[i + 1].values()) if i + 1 < len(columns) else []
            same = following == list(column.values())  # row by row
            for k, other in enumerate(following):
                if lit and other and (k == j or not same):
                    parts.append(
                        f'<path d="M{x + wide} {y + 14}L{x + wide + gap} {top + 36 + 36 * k}" '
                        f'stroke="{color}" stroke-width="2" fill="none"/>'
                    )
        said.append(f"{name}: {', '.join(label for label, lit in column.items() if lit)}")
    y = top + 22 + 36 * rows + 20
    for i, line in enumerate(lines):
        parts.append(_text(12, y + 20 * i, line, size=12, family="monospace"))
    height = y + 20 * len(lines)
    return _picture(parts, [*said, *lines], height=height)


def _picture(parts: Sequence[str], said: Sequence[str], *, height: float) -> Picture:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'width="100%" style="max-width:{WIDTH}px;font-family:{escape(_FONT)}" '
        f'aria-label="{escape(". ".join(said))}">'
    )
    return Picture(head + "".join(parts) + "</svg>", "\n".join(said))


def _text(
    x: float,
    y: float,
    words: str,
    anchor: str = "start",
    *,
    size: int = 13,
    weight: int = 400,
    fill: str = _WORDS,
    family: str = "",
) -> str:
    letters = f"font-family:{family};white-space:pre;" if family else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" style="{letters}fill:{fill}">{escape(words)}</text>'
    )


def _haloed(text: str) -> str:
    """Words that can be read where a line crosses them."""
    return f'<g style="paint-order:stroke;stroke:{_GROUND};stroke-width:4px">{text}</g>'


def _columns(text: str) -> int:
    return sum(2 if ord(char) > 0x1100 else 1 for char in text)


def _heading(lines: Sequence[str]) -> list[str]:
    return [_text(12, 22 + 22 * i, line, size=16, weight=600) for i, line in enumerate(lines)]


def _axis(
    limit: float, scale: float, words: str, top: float, bottom: float, *, left: int = _LEFT
) -> list[str]:
    """Five ticks below horizontal bars, their lines behind the bars, and the axis' words."""
    parts = []
    for tick in (limit * i / 4 for i in range(5)):
        x = left + tick * scale
        parts.append(f'<path d="M{x:.1f} {top}V{bottom}" stroke="{_LINES}" stroke-opacity=".4"/>')
        parts.append(_text(x, bottom + 18, f"{tick:g}", anchor="middle", size=12))
    parts.append(_text(left + limit * scale / 2, bottom + 38, words, anchor="middle"))
    return parts


def _lines(title: str) -> list[str]:
    lines = [""]
    for word in title.split(" "):
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and _columns(longer) > _TITLE_COLUMNS:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
