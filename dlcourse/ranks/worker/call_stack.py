"""Where a thread stands: the line of the cell, and the torch.distributed call it is in."""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
import torch.distributed as dist

DISTRIBUTED = dist.distributed_c10d.__file__
_COMMUNICATION = {
    name
    for name in dist.distributed_c10d.__all__
    if not name.startswith(("get_", "is_")) and callable(getattr(dist.distributed_c10d, name))
}


def stack_of(thread: int) -> tuple[list[tuple[str, int]], dict[str, Any] | None]:
    """Files and lines in which a thread stands, innermost first, and its collective.

    A line is 0 where Python names none, for between two lines it runs code that belongs to neither.
    Reads no source and waits for nothing: who holds a frame holds its tensors, and while this
    thread waits the other one goes on, so that memory would be counted that nobody uses.
    """
    frame = sys._current_frames().get(thread)
    collective, stack = collective_of(frame), []
    while frame is not None:
        stack.append((frame.f_code.co_filename, frame.f_lineno or 0))
        frame = frame.f_back
    return stack, collective


def collective_of(frame: types.FrameType | None) -> dict[str, Any] | None:
    """The torch.distributed call that a stack stands in: its name, peer and tensor.

    Calls that only ask (`get_rank`, `is_initialized`) are none: they wait for nobody.
    """
    found: dict[str, Any] | None = None
    while frame is not None:
        if frame.f_code.co_filename == DISTRIBUTED and frame.f_code.co_name in _COMMUNICATION:
            values = frame.f_locals
            tensor = values.get("tensor")
            found = {"op": frame.f_code.co_name}
            if isinstance(tensor, torch.Tensor):
                found |= {"shape": list(tensor.shape), "dtype": str(tensor.dtype)[6:]}
            for peer in ("src", "dst"):
                if isinstance(values.get(peer), int):
                    found["peer"] = values[peer]
        frame = frame.f_back
    return found


def collective_call(tb: types.TracebackType | None) -> dict[str, Any] | None:
    """The same for an exception: the torch.distributed call that raised it."""
    last = None
    while tb is not None:
        last, tb = tb.tb_frame, tb.tb_next
    return collective_of(last)
