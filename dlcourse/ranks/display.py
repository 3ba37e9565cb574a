"""Show one result for each rank: equal ones folded into a line, differing ones as a table."""

from __future__ import annotations

from typing import Any

LIMIT = 10_000  # characters of one rank's result


def describe(value: Any) -> dict[str, Any]:
    """Text (and HTML where the object has it) of a cell's last value, made in the rank."""
    text = repr(value)
    if len(text) > LIMIT:
        text = f"{text[:LIMIT]} … ({len(text):,} characters)"
    shown = {"repr": text}
    to_html = getattr(value, "_repr_html_", None)
    if to_html is not None and not isinstance(value, type):
        html = to_html()
        if isinstance(html, str):
            shown["html"] = html
    return shown


def ranges(ranks: list[int]) -> str:
    """Ranks as a person writes them: [0, 1, 2, 5] is "0-2, 5"."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def label(ranks: list[int]) -> str:
    """ "rank 2", or "ranks 0-3"."""
    return f"rank{'s' if len(ranks) > 1 else ''} {ranges(ranks)}"


def fold(values: dict[int, Any]) -> list[tuple[list[int], Any]]:
    """Group ranks that have the same value, in the order of their first rank."""
    groups: dict[Any, list[int]] = {}
    for rank in sorted(values):
        groups.setdefault(values[rank], []).append(rank)
    return [(ranks, value) for value, ranks in groups.items()]


class Results:
    """What the ranks of a cell returned, as a notebook shows it."""

    def __init__(self, shown: dict[int, dict[str, Any]]) -> None:
        self._groups = fold({rank: (s["repr"], s.get("html")) for rank, s in shown.items()})

    def __repr__(self) -> str:
        lines = []
        width = max(len(label(ranks)) for ranks, _ in self._groups)
        for ranks, (text, _) in self._groups:
            body = text.replace("\n", "\n" + " " * (width + 2))
            lines.append(f"{label(ranks):<{width}}: {body}")
        return "\n".join(lines)

    def _repr_html_(self) -> str | None:
        if all(html is None for _, (_, html) in self._groups):
            return None
        return "".join(
            f"<div><b>{label(ranks)}</b>{html or '<pre>' + _escape(text) + '</pre>'}</div>"
            for ranks, (text, html) in self._groups
        )


def _escape(text: str) -> str:
    from html import escape

    return escape(text)
