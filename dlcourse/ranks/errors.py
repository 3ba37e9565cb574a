"""Errors of a cell that ran in several ranks: one message for all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def _lines(error: BaseException) -> list[str]:
    """What IPython shows of an error, instead of the frames of the notebook's side."""
    notes = getattr(error, "__notes__", [])
    return [line for text in (str(error), *notes) for line in text.splitlines()]


class RankError(RuntimeError):
    """A cell or function failed in at least one rank.

    Attributes:
        failures: rank -> what that rank reported (type, message, line, traceback text).
        english: the message in English, whatever the language in use.
    """

    def __init__(self, message: str, failures: dict[int, dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.failures = failures or {}
        self.english: str = getattr(message, "english", message)

    def _render_traceback_(self) -> list[str]:
        return _lines(self)


class NoRanks(ValueError):
    """A cell for ranks, where there are none yet."""

    def _render_traceback_(self) -> list[str]:
        return _lines(self)


class NotInRanks(KeyError):
    """A name that `ranks[...]` was asked for, and that a rank does not have.

    Attributes:
        name: the name; "" where the message has said already what to do about it.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would put it in quotes

    def _render_traceback_(self) -> list[str]:
        return _lines(self)


def undefined_name(failure: dict[str, Any]) -> str | None:
    """The name that a rank's failure says is not defined, if that is what it says."""
    if failure["type"] != "NameError":
        return None
    found = re.match(r"name '(\w+)' is not defined", failure["message"])
    return found[1] if found else None


class CellError(RankError):
    """A `%%ranks` cell that Python cannot compile; nothing ran."""


class RanksInterrupted(KeyboardInterrupt):
    """The learner interrupted a cell; the message says where each rank stood."""

    def _render_traceback_(self) -> list[str]:
        return _lines(self)


class _Expected:
    """What `expect_failure` caught."""

    message = ""


@contextmanager
def expect_failure(text: str = "") -> Iterator[_Expected]:
    """Run code that must fail, for lessons that break things on purpose.

    Args:
        text: words that the error's message must contain, in its language or in English: a
            lesson's code is the same in both languages.

    Prints the message. Raises AssertionError if nothing fails, or if it fails in another way.
    """
    caught = _Expected()
    try:
        yield caught
    except (RankError, ValueError) as error:
        caught.message = str(error)
        said = error.args[0] if error.args else ""  # of a ValueError; a RankError has it itself
        english = getattr(error, "english", getattr(said, "english", ""))
        if text not in caught.message and text not in english:
            raise AssertionError(
                f"expected a failure that says {text!r}, but it said:\n{caught.message}"
            ) from error
        print(caught.message)
    else:
        raise AssertionError(f"expected a failure that says {text!r}, but nothing failed")
