"""Tables as text: aligned columns for a terminal, or Markdown. Both for Korean as for English."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def text_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool] | None = None
) -> str:
    """Columns as wide as their widest cell; a cell may have several lines.

    right: which columns are aligned to the right; None is all but the first.
    """
    from wcwidth import ljust, rjust, width  # a Korean letter is two columns wide

    if right is None:
        right = [position > 0 for position in range(len(header))]
    grid = [[cell.split("\n") for cell in row] for row in (header, *rows)]
    columns = zip(*grid, strict=True)
    widths = [max(width(part) for cell in column for part in cell) for column in columns]
    grid.insert(1, [["-" * wide] for wide in widths])
    pads = [rjust if to_right else ljust for to_right in right]
    lines = []
    for row in grid:
        for n in range(max(map(len, row))):
            parts = [cell[n] if n < len(cell) else "" for cell in row]
            padded = (pad(p, w) for pad, p, w in zip(pads, parts, widths, strict=True))
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, one line a row."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
