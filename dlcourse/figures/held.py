"""What was checked, said where a reader looks: how far two things were apart, and what is allowed.

A bare ``assert`` tells a reader nothing when it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from math import isnan
from typing import Any

from dlcourse.words.strings import t


class Said:
    """One sentence among results. In a notebook an address is a link with its host's name, and what
    stands between backticks is code."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence

    def __repr__(self) -> str:
        return self.sentence

    def _repr_html_(self) -> str:
        return f"<p>{_marked(self.sentence)}</p>"


class Held(Said):
    """One sentence: "equal to one process: largest difference 8.8e-06, allowed 5e-05, because …"

    It has been checked already: where it does not hold, `held` makes none.
    """

    def _repr_html_(self) -> str:
        return f'<p class="dlc-held">✓ {_marked(self.sentence)}</p>'


def _marked(sentence: str) -> str:
    """As HTML."""
    text = re.sub("`([^`]+)`", r"<code>\1</code>", escape(sentence))
    return re.sub(
        r"https?://([\w.-]+)(?:[^\s<]*[^\s<.,;:)])?",
        r'<a href="\g<0>" target="_blank">\1</a>',
        text,
    )


def held(what: str, difference: float, *, allowed: float, because: str, unit: str = "") -> Held:
    """Check that a difference is within what is allowed, and say so.

    Args:
        what: what was found to hold, such as "equal to one process".
        difference: how far it was off.
        allowed: how far it may be off.
        because: why that much is allowed; half a sentence without a full stop.
        unit: "%" or nothing.

    Raises:
        AssertionError: it is off by more, or is not a number; with the same sentence.
    """
    shown = [f"{value:.2g}{unit}" for value in (difference, allowed)]
    words = {"what": what, "difference": shown[0], "allowed": shown[1], "because": because}
    if not abs(difference) <= allowed:
        raise AssertionError(t("held.no", **words))
    return Held(t("held.yes", **words))


def largest(differences: Iterable[float]) -> float:
    """The largest of what `held` judges; NaN where one is, which `max` would pass over."""
    return max(differences, key=lambda difference: (isnan(difference), difference))


class Together:
    """Several results of one call, one below the other: tables and sentences.

    Raises:
        ValueError: a plotly figure is among them. As HTML it would ask another host for plotly.
    """

    def __init__(self, *parts: Any) -> None:
        for part in parts:
            if hasattr(part, "to_plotly_json"):
                raise ValueError(
                    f"a {type(part).__name__} of plotly cannot stand in Together: return it alone, "
                    "as the last line of its cell"
                )
        self.parts = parts

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, self.parts))

    def _repr_html_(self) -> str:
        return "".join(part._repr_html_() for part in self.parts)
