"""Directories that live as long as their process, also where it is killed and cannot clear up.

Each has a file that its process keeps locked; the system gives the lock back when the process
ends in whatever way. The next process that needs a directory removes those without an owner.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

MARK = ".dlcourse-owner"
YOUNG_S = 60.0  # an owner has not locked its new directory yet
_locks: dict[Path, int] = {}


def new_directory(prefix: str = "dlc") -> Path:
    """A directory that only we can enter, with a path short enough for a socket's name."""
    base = tempfile.gettempdir()
    base = base if len(base) < 60 else "/tmp"
    if not _locks:
        _remove_abandoned(Path(base))
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    with suppress(OSError):  # a file system without locks: then nobody can take ours either
        lock = os.open(directory / MARK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        _locks[directory] = lock
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return directory


def remove(directory: Path) -> None:
    """With all that is in it; without an error where it is gone already."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory in _locks:
        os.close(_locks.pop(directory))


def _remove_abandoned(base: Path) -> None:
    for mark in base.glob(f"*/{MARK}"):
        with suppress(OSError):  # somebody else's, or just removed
            known = mark.stat()
            if known.st_uid != os.getuid() or time.time() - known.st_mtime < YOUNG_S:
                continue
            descriptor = os.open(mark, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(mark.parent, ignore_errors=True)
            finally:
                os.close(descriptor)
