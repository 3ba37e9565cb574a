"""Distributed training in notebooks: every concept runs in real processes.

Importing the package in a notebook makes `%%ranks` cells known. It does not import torch: that
happens in the ranks.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

from dlcourse.measure.figure_hook import draw_with

__version__ = "0.1.0"

# Loaded at first use, so that a rank or a script takes only what it needs.
_HOME = {
    "Film": "dlcourse.explorer",
    "RankError": "dlcourse.ranks",
    "Ranks": "dlcourse.ranks",
    "RanksInterrupted": "dlcourse.ranks",
    "default_pool": "dlcourse.ranks",
    "expect_failure": "dlcourse.ranks",
    "check": "dlcourse.course",
    "claim": "dlcourse.course",
    "compare": "dlcourse.course",
    "explore": "dlcourse.explorer",
    "hint": "dlcourse.course",
    "lesson": "dlcourse.course",
    "predict": "dlcourse.course",
    "quiz": "dlcourse.course",
    "record_metric": "dlcourse.course",
    "scale": "dlcourse.plan.scale",
    "show": "dlcourse.course",
    "show_guesses": "dlcourse.course",
    "solution": "dlcourse.course",
}

__all__ = sorted(_HOME)


# Ranks are started, joined and stopped as POSIX systems do it.
WINDOWS = (
    "dlcourse runs on Linux and macOS. On Windows it runs in WSL2: `wsl --install` in a terminal, "
    "then install it in the Ubuntu that opens."
)


def _load(module: str, name: str | None = None) -> Any:
    """A module of ours, or a name in it; a learner's `numpy.py` is not taken for NumPy."""
    if sys.platform == "win32":
        raise OSError(WINDOWS)
    found, folder = sys.path, {""}
    with suppress(OSError):
        folder.add(os.getcwd())
    sys.path = [entry for entry in found if entry not in folder]
    try:
        loaded = import_module(module)
        return loaded if name is None else getattr(loaded, name)
    finally:
        sys.path = found


def __getattr__(name: str) -> Any:
    if name in _HOME:
        if name == "Ranks":  # made in front of a person, they have a live panel
            _load("dlcourse.panel.pool_panel", "register")()
        return _load(_HOME[name], name)
    raise AttributeError(f"module 'dlcourse' has no attribute {name!r}")


# What is measured stands below what draws it; only here both are known.
draw_with(lambda name: _load("dlcourse.figures.run", f"{name}_figure"))

if "IPython" in sys.modules:  # a notebook, not a script, the agent or a rank
    _load("dlcourse.course.kernel").register_magic()
