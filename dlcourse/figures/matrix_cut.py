"""Two matrices in a row, each cut by columns or by rows over ranks: who holds what, what moves."""

from __future__ import annotations

from enum import Enum
from typing import Any

from dlcourse.figures.colors import CATEGORIES, PLAIN, rank_color
from dlcourse.figures.picture import _GROUND, _WORDS, Picture, _heading, _lines, _picture
from dlcourse.figures.picture import _text as text
from dlcourse.formulas.traffic import pair_crossings, wire_bytes
from dlcourse.words.strings import t
from dlcourse.words.units import human_bytes

TOKENS, WIDTH, HIDDEN = 64, 128, 512  # of the lesson's MLP
_NARROW, _WIDE, _TALL = 34, 116, 64  # how large 128, 512 and the tokens are drawn
_SENT = CATEGORIES["communication"]


class Cut(Enum):
    """How a matrix is cut; as a slider's value it is a word of the reader's language."""

    ROWS = "rows"
    COLUMNS = "columns"

    def __str__(self) -> str:
        return t(f"tensor_parallel.cut.{self.value}")


CUTS = list(Cut)
MOST_PARTS = 64


def pair_bytes(first: Cut, second: Cut, ranks: int) -> dict[str, float]:
    """Bytes that a rank sends at each crossing of the lesson's MLP, by formula."""
    sizes = {"tokens": TOKENS, "width": WIDTH, "hidden": HIDDEN}
    crossings = pair_crossings(first.value, second.value, **sizes)
    return {name: wire_bytes(op, size, ranks) for name, (op, size) in crossings.items()}


def cut_and_sent(first: Cut, second: Cut, ranks: int) -> Picture:
    """y = GELU(x A) B with A and B cut: each rank's parts in its colour, and what is sent where.

    Raises:
        ValueError: more ranks than parts that can be told apart.
    """
    if ranks > MOST_PARTS:
        raise ValueError(f"ranks={ranks}: give at most {MOST_PARTS}, more parts cannot be seen")
    sent = pair_bytes(first, second, ranks)
    ops = pair_crossings(first.value, second.value, tokens=TOKENS, width=WIDTH, hidden=HIDDEN)
    total = sum(sent.values())
    held = 2 * 4 * WIDTH * HIDDEN // ranks
    words: dict[str, Any] = {"first": str(first), "second": str(second), "ranks": ranks}
    key = "title" if ranks > 1 else "alone"
    title = t(
        f"tensor_parallel.cut.{key}", **words, sent=human_bytes(total), held=human_bytes(held)
    )
    lines = _lines(title)
    parts = _heading(lines)
    middle = 22 * len(lines) + 88  # of the matrices, in height
    x, said = 16.0, [title]

    def matrix(name: str, look: str, wide: int, high: int) -> None:
        nonlocal x
        parts.extend(_matrix(x, middle - high / 2, wide, high, look, ranks))
        parts.append(text(x + wide / 2, middle + high / 2 + 18, name, "middle", weight=600))
        if look in ("summands", "part") and ranks > 1:
            told = t(f"tensor_parallel.cut.look.{look}")
            parts.append(text(x + wide / 2, middle + high / 2 + 34, told, "middle", size=12))
        x += wide

    def sign(word: str) -> None:
        nonlocal x
        parts.append(text(x + 13, middle + 5, word, "middle", size=16))
        x += 26

    def crossing(forward: str, backward: str) -> None:
        nonlocal x
        for name, up in ((forward, True), (backward, False)):
            if name:
                parts.extend(_crossing(x, middle, up, ops[name][0], sent[name]))
                told = _told(ops[name][0], sent[name]).replace("\n", " ")
                said.append(f"{t(f'tensor_parallel.cut.{name}')}: {told}")
        x += 100

    out = {Cut.COLUMNS: "part", Cut.ROWS: "summands"}
    into = {Cut.COLUMNS: "whole", Cut.ROWS: "part"}
    matrix("x", "whole", _NARROW, _TALL)
    crossing("", "start_backward")
    matrix("A", first.value, _WIDE, _NARROW)
    sign("=")
    matrix("h", out[first], _WIDE, _TALL)
    crossing("middle", "middle_backward")
    if out[first] != into[second]:
        matrix("h", into[second], _WIDE, _TALL)
        sign("·")
    matrix("B", second.value, _NARROW, _WIDE)
    sign("=")
    matrix("y", out[second], _NARROW, _TALL)
    crossing("end", "")
    matrix("y", "whole", _NARROW, _TALL)
    bottom = middle + 96
    parts += _legend(bottom, ranks)
    both = [
        sum(v for n, v in sent.items() if n.endswith("_backward") is back) for back in (False, True)
    ]
    told = t("tensor_parallel.cut.sum", forward=human_bytes(both[0]), backward=human_bytes(both[1]))
    parts.append(text(12, bottom + 36, told))
    said.append(told)
    return _picture(parts, said, height=bottom + 48)


def _matrix(x: float, y: float, wide: int, high: int, look: str, ranks: int) -> list[str]:
    """A matrix: whole in all ranks, in parts, or as many summands behind each other."""
    if look == "whole":
        return [_box(x, y, wide, high, PLAIN)]
    if ranks == 1:
        return [_box(x, y, wide, high, rank_color(0))]
    if look == "summands":  # the whole matrix, once for each rank: a pile
        step = 14 / ranks
        pile = range(ranks - 1, -1, -1)
        return [
            _box(x + step * r, y - step * r, wide - 14, high, rank_color(r), edge=True)
            for r in pile
        ]
    if look == "rows":
        return [
            _box(x, y + high / ranks * r, wide, high / ranks, rank_color(r)) for r in range(ranks)
        ]
    return [_box(x + wide / ranks * r, y, wide / ranks, high, rank_color(r)) for r in range(ranks)]


def _box(x: float, y: float, wide: float, high: float, fill: str, *, edge: bool = False) -> str:
    line = f' stroke="{_GROUND}" stroke-width=".6"' if edge else ""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}"'
    return f'<rect {place} fill="{fill}"{line}/>'


def _crossing(x: float, middle: float, up: bool, op: str, sent: float) -> list[str]:
    """An arrow to the right (forward, above) or to the left (backward, below), and its words."""
    y = middle - 12 if up else middle + 18
    color, wide = (_SENT, 3) if sent else (_WORDS, 1)
    left, right = x + 10, x + 90
    tip, back = (right, right - 8) if up else (left, left + 8)
    head = f"M{tip} {y}L{back} {y - 5}V{y + 5}Z"
    bold = 600 if sent else 400
    rows = _told(op, sent).split("\n")
    at = y - 10 - 15 * (len(rows) - 1) if up else y + 18
    words = [
        text(x + 50, at + 15 * i, row, "middle", size=12, weight=bold) for i, row in enumerate(rows)
    ]
    return [
        f'<path d="M{left} {y}H{right}" style="stroke:{color}" stroke-width="{wide}"/>',
        f'<path d="{head}" style="fill:{color}"/>',
        *words,
    ]


def _told(op: str, sent: float) -> str:
    if not sent:
        return t("tensor_parallel.cut.nothing")
    return f"{t(f'tensor_parallel.cut.op.{op}')}\n{human_bytes(sent)}"


def _legend(y: float, ranks: int) -> list[str]:
    parts = [_box(12, y, 14, 14, PLAIN), text(32, y + 12, t("tensor_parallel.cut.whole"), size=12)]
    x = 190.0
    for rank in range(ranks):
        parts.append(_box(x, y, 14, 14, rank_color(rank)))
        parts.append(text(x + 20, y + 12, t("figure.rank", rank=rank), size=12))
        x += 82
    return parts
