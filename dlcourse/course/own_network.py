"""A kernel in a network of its own: no other user of the machine reaches its ranks' ports.

torch's store and Gloo listen on loopback and ask nobody who they are, so on a machine with many
users each of them could speak to another's ranks. Linux gives any process a network namespace, with
a loopback that only its own children have: network_namespaces(7), user_namespaces(7). Lab reaches
the kernel by socket files (`KernelManager.transport`), which a namespace does not change. The rest
of the network is not there: a cell that wants the internet needs a terminal.

    python -P -m dlcourse.course.own_network -f CONNECTION_FILE …    # as ipykernel_launcher
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

VARIABLE = "DLCOURSE_OWN_NETWORK"  # "1": kernels that the server starts get one
_NEW_USER, _NEW_NETWORK = 0x1000_0000, 0x4000_0000  # <linux/sched.h>
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1  # <linux/sockios.h>, <linux/if.h>


def wanted() -> bool:
    """Whether kernels are to have a network of their own."""
    return os.environ.get(VARIABLE) == "1"


def leave() -> None:
    """Put this process into a new network, in which only loopback is up; before any thread.

    Raises:
        OSError: the system gives none, as in some containers, or where an administrator has
            turned user namespaces off.
    """
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER | _NEW_NETWORK):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _raise_loopback()


def _raise_loopback() -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("16sh14x", b"lo", 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _GET_FLAGS, asked))
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags | _UP))


def main() -> None:
    try:
        leave()
    except OSError as error:  # a kernel that others could disturb is better than none
        print(f"dlcourse: no network of its own for this kernel: {error}", file=sys.stderr)
    os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *sys.argv[1:]])


if __name__ == "__main__":
    main()
