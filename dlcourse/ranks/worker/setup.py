"""What a rank sets up around its cells: outputs, signals of its forks, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from dlcourse.ranks.messaging import STREAMS


def redirect_output(directory: Path, rank: int) -> None:
    """Send descriptors 1 and 2 to the agent; C++ and subprocesses included."""
    for target, stream in enumerate(STREAMS, start=1):
        pipe = os.open(directory / f"{rank}.{stream}", os.O_WRONLY)
        os.dup2(pipe, target)
        os.close(pipe)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the launcher made it empty
    sys.stdout = open(  # noqa: SIM115
        1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    sys.stderr = open(  # noqa: SIM115
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


def wait_for_siblings(directory: Path) -> None:
    """Touch the store only when the launcher has forked all ranks.

    The store's thread lives in the launcher. While it answers one rank it may hold a lock of
    the C library; a rank that is forked at that moment would find it locked for ever.
    """
    (directory / f"{os.environ['LOCAL_RANK']}.up").touch()
    siblings = [directory / f"{r}.up" for r in range(int(os.environ["LOCAL_WORLD_SIZE"]))]
    limit = time.monotonic() + 120
    while not all(file.exists() for file in siblings) and time.monotonic() < limit:
        time.sleep(0.002)


def flush_output(marker: bytes) -> None:
    """End the cell's output with a mark, so that the notebook knows it has all of it."""
    for number, stream in enumerate((sys.stdout, sys.stderr), start=1):
        try:
            stream.flush()
            os.write(number, marker)
        except Exception:
            pass  # the cell closed or replaced it; the notebook does not wait for long


def save_coverage() -> None:
    """Where coverage.py measures (`make coverage`), keep what it has: ranks end by SIGKILL."""
    if "coverage" in sys.modules and (measured := sys.modules["coverage"].Coverage.current()):
        measured.save()


def fork_as_a_notebook_does() -> None:
    """Have processes that are forked from this rank answer to signals as a new Python does.

    A signal that comes before the new process has its own handlers waits until it has.
    """
    ours = {signal.SIGINT, signal.SIGTERM}

    def in_child() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ours),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, ours),
        after_in_child=in_child,
    )


def give_memory_back() -> None:
    """Return freed memory to the system: glibc keeps it, 50 MB a rank after a training cell."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def prefer_as_victim() -> None:
    """If memory runs out, have Linux end a rank, never the notebook or its server."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")
