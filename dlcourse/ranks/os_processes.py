"""What the agent, a launcher and a rank ask the operating system about processes."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    """Ask Linux for something about this process; other systems have no such call."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux)."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Have processes whose parent ended become children of this one (Linux)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def sentinel(pid: int) -> int | None:
    """A descriptor that can be read when a process has ended; None where there is no such thing."""
    return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def exit_status(pid: int) -> int | None:
    """The wait status of a process that ended and is not yet collected, from /proc; else None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rsplit(")", 1)[1].split()[-1])
