"""Where a Stop arrives in a rank: an interrupt of the cell that the notebook names."""

from __future__ import annotations

import signal
import threading
from typing import Any


def from_notebook(error: KeyboardInterrupt) -> bool:
    """Whether the notebook has interrupted the cell, and not something in the cell itself."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code is Interrupt._on_signal.__code__


class Interrupt:
    """Raises KeyboardInterrupt in the thread that makes this object, in one cell only.

    Attributes:
        running: the number of the cell that runs now; None where an interrupt would come too late.
    """

    def __init__(self) -> None:
        self.running: int | None = None
        self._thread = threading.get_ident()
        self._wanted: int | None = None  # the cell that the notebook wants interrupted
        signal.signal(signal.SIGINT, self._on_signal)

    def request(self, cell: int) -> None:
        """Interrupt a cell if it is the one that runs; called from another thread."""
        if self.running == cell:
            self._wanted = cell
            signal.pthread_kill(self._thread, signal.SIGINT)

    def _on_signal(self, *_: Any) -> None:
        """Raise KeyboardInterrupt in the cell that runs, if the notebook asked for it.

        Jupyter signals the whole process group; the notebook first looks where each rank stands.
        """
        if self._wanted == self.running is not None:
            self._wanted = None
            raise KeyboardInterrupt
