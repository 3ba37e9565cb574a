"""The connections of a rank to the others: cut to end a wait that Python cannot interrupt."""

from __future__ import annotations

import contextlib
import os
import socket
import stat


class Connections:
    """The sockets of this rank's process group: those opened after this object was made.

    Attributes:
        were_cut: whether they were cut since the group was made.
    """

    def __init__(self) -> None:
        self.were_cut = False
        self._foreign = {inode for _, inode in _sockets()}  # not to be cut with the group's

    def cut(self) -> None:
        """End a wait in Gloo: shut the connections to the other ranks down, so that it fails.

        Not the connection to the store, and none that the fork inherited: those are the launcher's.
        """
        self.were_cut = True
        for descriptor, inode in _sockets():
            if inode in self._foreign:
                continue
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as found:
                if found.family in (socket.AF_INET, socket.AF_INET6):
                    found.getpeername()  # fails for a socket that listens; Gloo needs that one
                    found.shutdown(socket.SHUT_RDWR)


def _sockets() -> list[tuple[int, int]]:
    """The open sockets of this process: descriptor and inode."""
    found = []
    for descriptor in range(3, 4096):
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISSOCK(status.st_mode):
                found.append((descriptor, status.st_ino))
    return found


def keep_descriptors() -> None:
    """Gloo's sockets are not for the programs that a cell starts: they would keep them open."""
    for descriptor in range(3, 256):
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, False)
