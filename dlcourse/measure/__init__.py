"""Measure what ranks do: communication, memory, time, floating-point operations.

Names are resolved on first use, so that a notebook kernel that only reads a finished
`Run` never imports torch:

    from dlcourse.measure import mark_step   # in a rank: imports torch
    from dlcourse.measure import Run         # in the kernel: does not
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlcourse.measure.recorder import Recorder, live_bytes, mark_step
    from dlcourse.measure.run import Run

__all__ = ["Recorder", "Run", "live_bytes", "mark_step"]

_HOME = {
    **dict.fromkeys(("Recorder", "live_bytes", "mark_step"), "recorder"),
    "Run": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
