"""Show one result for each rank: equal ones folded into a line, differing ones as a table."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

from dlcourse.words.units import rank_ranges

LIMIT = 10_000  # characters of one rank's result
HTML_LIMIT = 1_000_000  # characters: above it the text is shown instead
_JOINER = "\u200d"  # between the parts of a family, a flag, a profession


def describe(value: Any) -> dict[str, Any]:
    """Text (and HTML where the object has it) of a cell's last value, made in the rank."""
    shown = {"repr": shorten(plain(repr(value)), LIMIT)}
    try:
        html = None if isinstance(value, type) else value._repr_html_()
    except Exception:  # it has none, or one that fails: its text is enough
        html = None
    if isinstance(html, str) and len(html) <= HTML_LIMIT:
        shown["html"] = plain(html)
    return shown


def plain(text: str) -> str:
    """The same text as a `str` that can be sent and shown: no subclass, no halves of pairs."""
    return str.encode(text, "utf-8", "backslashreplace").decode()


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters of a text and how long it is; no character is cut in two."""
    if len(text) <= limit:
        return text
    cut = limit
    while cut > limit - 32 and (_attached(text[cut]) or text[cut - 1] == _JOINER):
        cut -= 1
    return f"{text[:cut]} … ({len(text):,} characters)"


def _attached(character: str) -> bool:
    """Whether it belongs to the character before it: an accent, a vowel sign, a skin colour."""
    joining = unicodedata.category(character) in ("Mn", "Me", "Mc") or character == _JOINER
    hangul = "\u1160" <= character <= "\u11ff"  # vowels and final consonants of a syllable
    return joining or hangul or "\U0001f3fb" <= character <= "\U0001f3ff"


def in_words(value: Any, text: Callable[[Any], str] = repr, limit: int = LIMIT) -> str:
    """`repr(value)` or `str(value)`, for messages: whatever it is, and where that fails too."""
    try:
        return shorten(plain(text(value)), limit)
    except BaseException as error:
        return f"<its {text.__name__}() fails with {type(error).__name__}>"


def label(ranks: list[int]) -> str:
    """ "rank 2", or "ranks 0-3"."""
    return f"rank{'s' if len(ranks) > 1 else ''} {rank_ranges(ranks)}"


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
