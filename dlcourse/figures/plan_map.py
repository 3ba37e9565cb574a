"""One layout's memory against the card's limit, above the map of what fits: for the planner.

Plain numbers in, a picture out; `dlcourse.explorer.plan` asks the planner for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlcourse.figures.colors import CATEGORIES, PLAIN, text_on
from dlcourse.figures.picture import _LINES, _WORDS, WIDTH, Picture, _columns, _lines, _picture
from dlcourse.figures.picture import _text as text
from dlcourse.words.strings import t

_LEFT, _RIGHT, _TALL, _BAR = 150, 24, 48, 34
_REACH = 1.5  # the axis ends at this many limits; a longer bar is cut there


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place of the map: the best layout there.

    gb:     memory of the fullest rank.
    speed:  its speed over the best one's; None where it does not fit.
    chosen: whether its memory is the bar above.
    """

    gb: float
    speed: float | None
    chosen: bool = False


def plan_map(
    sizes: Mapping[str, float],
    cells: Mapping[tuple[int, int], Cell],
    *,
    limit: float,
    title: str,
    layout: str,
) -> Picture:
    """The bar of one layout, cut into the course's categories; below it a map.

    sizes:  category -> GB.
    cells:  (tensor, pipeline) -> what is best there; places without one divide nothing.
    limit:  GB of the card.
    title:  what the picture shows, as a sentence.
    layout: the bar's layout in words.

    Raises:
        ValueError: a category is unknown, or there is no cell.
    """
    if unknown := set(sizes) - set(CATEGORIES):
        raise ValueError(f"sizes holds {sorted(unknown)}: give some of {', '.join(CATEGORIES)}")
    if not cells:
        raise ValueError("cells is empty: give at least one place of the map")
    lines = _lines(title)
    parts = [text(12, 22 + 22 * i, line, size=16, weight=600) for i, line in enumerate(lines)]
    top = 30 + 22 * len(lines)
    bar, bar_said, y = _bar(sizes, limit=limit, top=top, layout=layout)
    field, field_said, height = _map(cells, top=y)
    return _picture([*parts, *bar, *field], [title, *bar_said, *field_said], height=height)


def _bar(
    sizes: Mapping[str, float], *, limit: float, top: float, layout: str
) -> tuple[list[str], list[str], float]:
    scale = (WIDTH - _LEFT - _RIGHT) / (_REACH * limit)
    parts = [text(_LEFT, top, layout, size=13, weight=600)]
    y, end = top + 24, _LEFT + _REACH * limit * scale
    x, total = float(_LEFT), sum(sizes.values())
    parts.append(text(_LEFT - 10, y + 22, f"{total:,.1f} GB", anchor="end", weight=600))
    for name, color in CATEGORIES.items():
        width = min(sizes.get(name, 0) * scale, end - x)
        if width <= 0:
            continue
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" ')
        parts[-1] += f'fill="{color}"/>'
        if width > 44:
            at, size = x + width / 2, f"{sizes[name]:.1f}"
            parts.append(text(at, y + 22, size, "middle", size=12, fill=text_on(color)))
        x += width
    if total > _REACH * limit:  # it goes on: the edge is torn
        torn = f"M{end - 8} {y - 2}l6 10l-6 10l6 10l-6 10"
        parts.append(f'<path d="{torn}" stroke="{_WORDS}" stroke-width="2" fill="none"/>')
    at = _LEFT + limit * scale
    parts.append(f'<path d="M{at:.1f} {y - 8}V{y + _BAR + 8}" stroke="{_WORDS}" stroke-width="3"/>')
    said = t("plan.map.limit", gb=f"{limit:,.1f}")
    parts.append(text(at + 8, y - 4, said, size=12))
    y += _BAR + 26
    x = float(_LEFT)
    for name in (name for name in CATEGORIES if sizes.get(name)):
        word = t(f"category.{name}")
        wide = 18 + 8 * _columns(word) + 14
        if x + wide > WIDTH:
            x, y = float(_LEFT), y + 20
        parts.append(f'<rect x="{x}" y="{y - 11}" width="12" height="12" ')
        parts[-1] += f'fill="{CATEGORIES[name]}"/>'
        parts.append(text(x + 18, y, word, size=12))
        x += wide
    held = ", ".join(f"{t(f'category.{name}')} {size:,.1f}" for name, size in sizes.items())
    return parts, [f"{layout}: {total:,.1f} GB ({held}). {said}"], y + 34


def _map(
    cells: Mapping[tuple[int, int], Cell], *, top: float
) -> tuple[list[str], list[str], float]:
    rows = sorted({t for t, _ in cells})
    columns = sorted({p for _, p in cells})
    wide = min(110.0, (WIDTH - _LEFT - _RIGHT) / len(columns))
    heading = _lines(t("plan.map.heading"))
    parts = [text(12, top + 18 * i, line, size=13) for i, line in enumerate(heading)]
    y = top + 18 * len(heading) + 8
    for i, p in enumerate(columns):
        word = t("plan.layout.pipeline", n=p) if i == 0 else str(p)
        parts.append(text(_LEFT + wide * (i + 0.5), y, word, "middle", size=12))
    y += 8
    said = [t("plan.map.heading")]
    for row in rows:
        parts.append(text(_LEFT - 10, y + 28, t("plan.layout.tensor", n=row), "end", size=12))
        for i, p in enumerate(columns):
            if cell := cells.get((row, p)):
                parts += _cell(cell, _LEFT + wide * i, y, wide)
        said.append(_row_said(row, columns, cells))
        y += _TALL
    return parts, said, y + 12


def _row_said(row: int, columns: Sequence[int], cells: Mapping[tuple[int, int], Cell]) -> str:
    each = [
        f"{p}: {_memory(cell)}, {_speed(cell)}" for p in columns if (cell := cells.get((row, p)))
    ]
    head = f"{t('plan.layout.tensor', n=row)}, {t('plan.layout.pipeline', n='')}".rstrip()
    return f"{head} {'; '.join(each)}"


def _memory(cell: Cell) -> str:
    return f"{cell.gb:,.0f} GB"


def _speed(cell: Cell) -> str:
    return t("plan.map.over") if cell.speed is None else f"{100 * cell.speed:.0f}%"


def _cell(cell: Cell, x: float, y: float, wide: float) -> list[str]:
    """Filled where it fits, with its speed as a stripe; a dashed frame where it does not."""
    fits = cell.speed is not None
    frame = f'x="{x + 2:.1f}" y="{y + 2}" width="{wide - 4:.1f}" height="{_TALL - 4}" rx="4"'
    if fits:
        parts = [f'<rect {frame} fill="{PLAIN}"/>']
    else:
        parts = [f'<rect {frame} fill="none" stroke="{_LINES}" stroke-dasharray="4 3"/>']
    if cell.chosen:
        parts.append(f'<rect {frame} fill="none" stroke="{_WORDS}" stroke-width="3"/>')
    words, at = text_on(PLAIN) if fits else _WORDS, x + wide / 2
    size = 12 if wide > 70 else 11
    weight = 600 if cell.chosen else 400
    parts.append(text(at, y + 19, _memory(cell), "middle", size=size, fill=words, weight=weight))
    parts.append(text(at, y + 34, _speed(cell), "middle", size=size, fill=words, weight=weight))
    if cell.speed is not None:
        long = (wide - 16) * min(1.0, cell.speed)
        stripe = f'x="{x + 8:.1f}" y="{y + 38}" width="{long:.1f}" height="3"'
        parts.append(f'<rect {stripe} fill="{words}"/>')
    return parts
