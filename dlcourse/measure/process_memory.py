"""Memory of a process as the system sees it, shared pages counted fairly.

Ranks forked from one process share most of their pages (the interpreter, torch). RSS counts
those pages in full in every rank, so four ranks seem to need four times as much as they do.
PSS divides each shared page by the number of processes that map it: PSS adds up.

Source: the Linux kernel's Documentation/filesystems/proc.rst, "smaps_rollup".
"""

from __future__ import annotations

import time
from contextlib import suppress

import psutil


def pss_bytes(process: psutil.Process | None = None) -> int:
    """Proportional set size of a process in bytes; None is this one.

    Where the system has no PSS (macOS): unique set size, else resident set size.
    Costs 1 to 5 ms: the kernel walks the page tables.
    """
    process = process or psutil.Process()
    try:
        memory = process.memory_full_info()
    except psutil.AccessDenied:
        return process.memory_info().rss
    return getattr(memory, "pss", memory.uss)


def memory_together() -> int:
    """Bytes of all processes that the notebook has started: the ranks and what starts them.

    A page that several processes share counts once (PSS). Where the system has no PSS (macOS),
    only what each process has for itself counts (USS).
    """
    total = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            total += pss_bytes(process)
    return total


class CachedPss:
    """`pss_bytes()` read so rarely that it takes at most about 2% of one core's time."""

    def __init__(self) -> None:
        self._value = 0
        self._next = 0.0

    def read(self) -> int:
        """The last reading, renewed when it is old enough."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 1.0  # other threads go on with the old value meanwhile
            self._value = pss_bytes()
            cost = time.monotonic() - now
            self._next = now + max(0.5, 50 * cost)
        return self._value
