"""The learner's Stop (Ctrl-C, Jupyter's ■): noted at once, raised only where the engine asks.

A KeyboardInterrupt can come between any two steps of Python. While processes are started, waited
for or ended it would leave half of them behind, and a double click would break off the clearing up
after the first click.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from dlcourse.ranks.notebook.front_end import in_a_kernel

AGAIN = 1.0  # seconds: presses that follow sooner are one press of an impatient person
_innermost: DelayedStop | None = None


class DelayedStop:
    """A block in which a Stop waits for the next `check`; what nobody took is raised at its end.

    In other threads than the main one nothing changes: Python never interrupts those.
    """

    def __init__(self) -> None:
        self._counted: float | None = None  # when the last press came that counts
        self._pressed = False
        self._deaf = False

    def __enter__(self) -> DelayedStop:
        global _innermost
        self._handler: Any = None
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            handler = getattr(handler, "behind", handler)
            if callable(handler):  # neither ignored nor left to the system
                self._outer, _innermost = _innermost, self
                self._handler = handler
                signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        global _innermost
        if self._handler is not None:
            _innermost = self._outer
            if self._counted is not None and self._outer is not None:
                self._outer._counted = self._counted
            _listen_again(self._handler, None if self._outer else self._counted)
            if self._pressed and error is None:
                self._handler(signal.SIGINT, None)

    def _press(self, *_: object) -> None:
        now = time.monotonic()
        if self._counted is None or now - self._counted >= AGAIN:
            self._counted, self._pressed = now, True

    def ignore(self) -> None:
        """From here on, let the block come to its end."""
        self._deaf = True

    def forget(self) -> None:
        """A Stop that came too late to stop anything is not raised at the end either."""
        self._pressed = False

    def take(self) -> None:
        """Raise KeyboardInterrupt if Stop was pressed."""
        if self._pressed and not self._deaf:
            self._pressed = False
            raise KeyboardInterrupt


def _listen_again(handler: Any, counted: float | None) -> None:
    """Give Stop back to who had it, but not the rest of an impatient person's one press.

    What the press has ended is being told about in that second; it would be lost. ipykernel sets
    its own handler for each cell, so a press in the next one counts, however soon it comes.
    """
    signal.signal(signal.SIGINT, handler)
    if counted is None or time.monotonic() - counted >= AGAIN:
        return
    if handler is not signal.default_int_handler or not in_a_kernel():
        return

    def later(number: int, frame: Any) -> None:
        if time.monotonic() - counted >= AGAIN:
            signal.signal(signal.SIGINT, handler)
            handler(number, frame)

    later.behind = handler  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, later)


def check() -> None:
    """A place where the engine may be interrupted: raises KeyboardInterrupt after a Stop."""
    if _innermost is not None and threading.current_thread() is threading.main_thread():
        _innermost.take()
