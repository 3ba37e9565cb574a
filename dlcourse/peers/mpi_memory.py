"""What a job of MPI that died in MPI's own start has left in /dev/shm.

MPICH and UCX make files there while MPI starts, and remove them at its end. A rank that dies in
between has not told us their names, which MPICH makes from a number of the job that it keeps to
itself. So this looks for what is there now and was not before, has such a name, belongs to this
user, and is used by nobody: neither open nor mapped, in any process, in other containers too.

The last is the kernel's word. It grants a write lease only on a file that nobody else has open,
and memory that is mapped keeps its file open. (fcntl(2), "Leases"; Linux only.) Another job that
lives is so left alone, whenever it was started. Where there are no leases nothing is removed.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import time
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/dev/shm")
NAMES = ("mpich_shm", "mpich_vci", "ucx_shm")  # how MPICH's and UCX's files begin
DYING = 1.0  # seconds until the memory of a killed process is gone


def files_of_mpi() -> dict[str, int]:
    """{path: inode} of the files of MPICH and UCX in shared memory, whoever's they are."""
    found = {}
    with suppress(OSError):  # no such folder: not Linux
        for entry in os.scandir(FOLDER):
            if entry.name.startswith(NAMES):
                found[entry.path] = entry.inode()
    return found


def remove_abandoned(before: dict[str, int], seconds: float = DYING) -> list[str]:
    """Remove the files that nobody uses and that were not there before; returns their paths.

    Args:
        before: what `files_of_mpi` gave before the job was started.
        seconds: how long to look again while some are in use: a process may still be dying.
    """
    removed: list[str] = []
    end = time.monotonic() + seconds
    while True:
        new = {path: at for path, at in files_of_mpi().items() if before.get(path) != at}
        unused = [path for path, inode in new.items() if _remove_unused(path, inode)]
        removed += unused
        if len(unused) == len(new) or time.monotonic() > end:
            return removed
        time.sleep(0.05)


def _remove_unused(path: str, inode: int) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # gone, or another user's
        return False
    try:
        about = os.fstat(fd)
        if about.st_ino != inode or about.st_uid != os.getuid() or not stat.S_ISREG(about.st_mode):
            return False
        # Who opens it now waits until it is closed here, and the kernel tells this process by a
        # signal: by one that does nothing unless it is asked for
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.unlink(path)
        return True
    except OSError:  # in use
        return False
    finally:
        os.close(fd)
