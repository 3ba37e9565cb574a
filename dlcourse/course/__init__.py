"""Course tools: build the notebooks, run them headless, exercises, claims.

Nothing in this package imports torch, so the notebook's kernel stays small. What lessons call is
loaded at first use, and is offered by ``dlcourse`` itself: ``from dlcourse import predict``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "check",
    "claim",
    "compare",
    "hint",
    "lesson",
    "predict",
    "quiz",
    "record_metric",
    "show",
    "show_guesses",
    "solution",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("dlcourse.course.helpers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
