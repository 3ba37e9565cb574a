"""Where a Stop arrives in a rank: an interrupt of the cell that the notebook names."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType


def from_notebook(error: KeyboardInterrupt) -> bool:
    """Whether the notebook has interrupted the cell, and not something in the cell itself."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code is Interrupt._on_signal.__code__


# Cut off there, a `with` would leave what it has set: gradients off, or autocast on, for all later
# cells. A wait in C++ ends with an error, and the first Python that runs then is an __exit__.
CONTEXT = {"__enter__", "__exit__", "__aenter__", "__aexit__"}
AT_MOST = 1.0  # s: an interrupt waits so long for a context


class Interrupt:
    """Raises KeyboardInterrupt in the thread that makes this object, in one cell only.

    Attributes:
        running: the number of the cell that runs now; None where an interrupt would come too late.
        raised: whether one has come in this cell. Else a KeyboardInterrupt is the cell's own.
    """

    def __init__(self) -> None:
        self.running: int | None = None
        self.raised = False
        self._thread = threading.get_ident()
        self._wanted: int | None = None  # the cell that the notebook wants interrupted
        self._since: float | None = None  # when it first met a context that is entered or left
        signal.signal(signal.SIGINT, self._on_signal)

    def request(self, cell: int) -> None:
        """Interrupt a cell if it is the one that runs; called from another thread."""
        if self.running == cell:
            self._wanted, self._since = cell, None
            signal.pthread_kill(self._thread, signal.SIGINT)

    @property
    def waits(self) -> bool:
        """Whether a cell runs that has been asked to end and was not interrupted yet."""
        return self._wanted == self.running is not None

    def again(self) -> None:
        """Try once more, where a context was in the way; called from another thread."""
        if self.waits and self._since is not None:
            signal.pthread_kill(self._thread, signal.SIGINT)

    def _on_signal(self, _: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt in the cell that runs, if the notebook asked for it.

        Jupyter signals the whole process group; the notebook first looks where each rank stands.
        """
        if not self.waits:
            return
        if _in_context(frame):
            self._since = self._since or time.monotonic()
            if time.monotonic() < self._since + AT_MOST:
                return
        self._wanted = None
        self.raised = True
        raise KeyboardInterrupt


def _in_context(frame: FrameType | None) -> bool:
    """Whether a context manager is being entered or left."""
    while frame is not None:
        if frame.f_code.co_name in CONTEXT:
            return True
        frame = frame.f_back
    return False
