"""Bytes on the wire of this rank alone, from its own TCP connections.

Gloo sends over TCP, on one machine too, and Linux keeps a count of bytes for each connection
(``TCP_INFO``). Unlike the counters of a network interface in `/proc/net/dev`, these belong to
one process: nothing else that runs on the machine is in them, nor are packet headers.

NCCL uses NVLink, shared memory or InfiniBand where it can, and those bytes are not TCP's.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time

# Places in Linux's `struct tcp_info` (include/uapi/linux/tcp.h), which only ever grows at its end.
_RECEIVED = 128  # tcpi_bytes_received, 64 bits
_NOT_SENT = 144  # tcpi_notsent_bytes, 32 bits: accepted from the process, not on the wire yet
_SENT = 200  # tcpi_bytes_sent, 64 bits, with what had to be sent again
_AGAIN = 208  # tcpi_bytes_retrans, 64 bits
_LENGTH = 216


def wire_counters() -> tuple[int, int] | None:
    """(bytes sent, bytes received) over this process's open TCP connections so far.

    Take it before and after, and subtract. None where the system has no such counters.
    """
    if not sys.platform.startswith("linux"):
        return None
    deadline = time.monotonic() + 1.0
    while True:
        counts = [counts for fd in _sockets() if (counts := _counts(fd)) is not None]
        sent, received, waiting = (sum(c[i] for c in counts) for i in range(3))
        if not waiting or time.monotonic() > deadline:
            return sent, received
        time.sleep(0.001)  # the other side is slow to read


def _sockets() -> list[int]:
    fds = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                fds.append(int(name))
        except OSError:
            pass  # closed since it was listed
    return fds


def _counts(fd: int) -> tuple[int, int, int] | None:
    """(sent, received, not sent yet) of one socket; None if it is no TCP connection."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:  # a copy, so that closing it is harmless
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LENGTH)
    except OSError:
        return None
    if len(info) < _LENGTH:
        return None
    sent = struct.unpack_from("=Q", info, _SENT)[0] - struct.unpack_from("=Q", info, _AGAIN)[0]
    return sent, struct.unpack_from("=Q", info, _RECEIVED)[0], _not_sent(info)


def _not_sent(info: bytes) -> int:
    return struct.unpack_from("=I", info, _NOT_SENT)[0]
