"""Errors of a cell that ran in several ranks: one message for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class RankError(RuntimeError):
    """A cell or function failed in at least one rank.

    Attributes:
        failures: rank -> what that rank reported (type, message, line, traceback text).
    """

    def __init__(self, message: str, failures: dict[int, dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.failures = failures or {}

    def _render_traceback_(self) -> list[str]:
        # IPython shows these lines instead of the frames of the notebook's side.
        return str(self).splitlines()


class CellError(RankError):
    """A `%%ranks` cell that Python cannot compile; nothing ran."""


class RanksInterrupted(KeyboardInterrupt):
    """The learner interrupted a cell; the message says where each rank stood."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


class _Expected:
    """What `expect_failure` caught."""

    message = ""


@contextmanager
def expect_failure(text: str = "") -> Iterator[_Expected]:
    """Run code that must fail, for lessons that break things on purpose.

    Args:
        text: words that the error's message must contain.

    Prints the message. Raises AssertionError if nothing fails, or if it fails in another way.
    """
    caught = _Expected()
    try:
        yield caught
    except (RankError, ValueError) as error:
        caught.message = str(error)
        if text not in caught.message:
            raise AssertionError(
                f"expected a failure that says {text!r}, but it said:\n{caught.message}"
            ) from error
        print(caught.message)
    else:
        raise AssertionError(f"expected a failure that says {text!r}, but nothing failed")
