"""One call at a time for a pool: two threads would take each other's answers and wait for ever."""

from __future__ import annotations

import threading
from typing import Any

from dlcourse.words.strings import t


class OneAtATime:
    """A block that one thread may be in; ValueError for a second one.

    It is the thread that is kept, not a lock: a Stop between two steps of Python may leave a lock
    taken, and its thread is let in again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        this = threading.current_thread()
        with self._lock:
            if self._thread not in (None, this) and self._thread.is_alive():
                raise ValueError(t("ranks.busy", thread=self._thread.name))
            self._thread = this

    def __exit__(self, *_: Any) -> None:
        self._thread = None
