"""Moments in a rank: on the host's clock, or in the order of a GPU's work.

On a GPU, Python only queues work. So there a moment is a CUDA event on the current stream, and
is turned into a time when the cell has ended.
"""

from __future__ import annotations

import time
from typing import Any

import torch

clock = time.monotonic_ns
Mark = Any  # int (ns), or a torch.cuda.Event until `Marks.resolve`


class Marks:
    """Moments, on the host's clock or on the GPU's."""

    def __init__(self) -> None:
        self.cuda = False

    def start(self) -> None:
        """Use CUDA events if this process has a CUDA context; tie them to the host's clock."""
        self.cuda = torch.cuda.is_initialized()
        if self.cuda:
            self._base = torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            self._base.record()
            self._base.synchronize()
            self._base_ns = clock()

    def now(self) -> Mark:
        """This moment in the order of the current stream's work."""
        if not self.cuda:
            return clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def resolve(self, mark: Mark) -> Any:
        """The moment in ns of the monotonic clock, or None. Waits for the GPU if needed."""
        if mark is None or isinstance(mark, int):
            return mark
        mark.synchronize()
        return self._base_ns + int(self._base.elapsed_time(mark) * 1e6)
