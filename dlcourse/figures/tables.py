"""Small tables: HTML in a notebook, aligned text everywhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from dlcourse.words.text_table import text_table

_MANY_COLUMNS = 8  # more than these are set in smaller letters


class Table:
    """Rows of plain data with a header.

    header: one text a column.
    rows:   one sequence a row, as long as the header. A number is right-aligned and grouped by
            thousands (format it yourself for units); anything else is shown as `str()` shows it,
            its line breaks kept.
    caption: one line above the table.

    `repr()` is aligned text with Korean counted two columns wide; `_repr_html_()` takes its colours
    from the page, so that both themes of JupyterLab work.
    """

    def __init__(
        self, header: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str = ""
    ) -> None:
        self.header = [str(text) for text in header]
        self.rows = [list(row) for row in rows]
        self.caption = caption
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"rows holds a row of {len(row)} cells, {row!r}, but header has "
                    f"{len(self.header)}; give each row one cell for each column."
                )
        self._right = [
            bool(self.rows) and all(_is_number(row[i]) for row in self.rows)
            for i in range(len(self.header))
        ]

    def __repr__(self) -> str:
        rows = [[_text(cell) for cell in row] for row in self.rows]
        table = text_table(self.header, rows, self._right)
        return f"{self.caption}\n{table}" if self.caption else table

    def _repr_html_(self) -> str:
        sides = ["right" if right else "left" for right in self._right]
        # Narrow enough for a page of 1000 pixels, where a row's name may take two lines
        many = len(self.header) > _MANY_COLUMNS
        small = ";font-size:10px;padding:3px 4px" if many else ""
        small_head = f";word-break:keep-all{small}" if many else ""
        spaces = ["pre-wrap" if many and i == 0 else "pre" for i in range(len(sides))]
        head = "".join(
            f'<th scope="col" style="text-align:{side}{small_head}">{escape(text)}</th>'
            for text, side in zip(self.header, sides, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(
                f'<td style="text-align:{side};white-space:{space}{small}">'
                f"{escape(_text(cell))}</td>"
                for cell, side, space in zip(row, sides, spaces, strict=True)
            )
            + "</tr>"
            for row in self.rows
        )
        caption = (
            f'<caption style="text-align:left">{escape(self.caption)}</caption>'
            if self.caption
            else ""
        )
        # The ranks' values line up when their digits do.
        style = "font-variant-numeric:tabular-nums;margin:2px 0"
        return (
            f'<table class="dlc-results" style="{style}">{caption}'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:,.6g}"
    return f"{cell:,}" if _is_number(cell) else str(cell)
