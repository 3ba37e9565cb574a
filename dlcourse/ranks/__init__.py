"""Start ranks and talk to them: real processes, one process group, driven from a notebook.

`notebook/` is the side that learners use, `agent/` the process that starts ranks, `worker/` what
runs in a rank, `diagnosis/` why a cell did not end. `messaging.py` carries all between them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Loaded at first use: the agent and the ranks do not need the notebook's side.
_HOME = {
    "RankError": "errors",
    "Ranks": "notebook.pool",
    "RanksInterrupted": "errors",
    "default_pool": "notebook.pool",
    "expect_failure": "errors",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"dlcourse.ranks.{_HOME[name]}"), name)
    raise AttributeError(f"module 'dlcourse.ranks' has no attribute {name!r}")
