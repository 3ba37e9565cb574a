"""Memory that several ranks of one machine see: made without a name, so that nothing is left.

Rank 0 makes a file that lives in memory alone (``memfd_create``) and says where: its process and
descriptor. The others open it as ``/proc/PROCESS/fd/DESCRIPTOR``, and all map it. The memory goes
with the last process that maps it, however that process ends.

It is not a file of /dev/shm, whose size (64 MB in a container, unless its maker asked for more)
is no limit to it: Linux keeps it in a mount of its own. What limits it is memory. All of it is
reserved at the start, so that a lack is an error in words then, and not a signal at some later
store.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets

import torch
import torch.distributed as dist

from dlcourse.machine import available_bytes

TOKEN = 16  # bytes at the start that say whose memory it is
_LINUX = "this system has no memfd_create (Linux has)"


def map_shared(nbytes: int, group: dist.ProcessGroup | None, *, instead: str) -> mmap.mmap:
    """The same memory in every rank of the group, all zero but for the first `TOKEN` bytes.

    Args:
        nbytes: as many in every rank.
        instead: what the caller can do where it is refused: a sentence.

    Raises:
        ValueError: in every rank, before anything is written: no Linux, several machines, more
            than the memory that is free, or ranks that ask for different sizes.
    """
    if not hasattr(os, "memfd_create"):
        raise ValueError(f"{_LINUX}. {instead}")
    if "cpu:" not in dist.get_backend_config(group):
        raise ValueError(
            f"the group talks over {dist.get_backend(group)}, not from the CPU's memory. {instead}"
        )
    where = torch.zeros(5 + TOKEN, dtype=torch.int64)  # process, file, bytes, error, free, token
    fd = -1
    try:
        if dist.get_rank(group) == 0:
            free = available_bytes()
            fd, token, error = _make(nbytes, free)
            where = torch.tensor([os.getpid(), fd, nbytes, error, free, *token])
        dist.broadcast(where, group=group, group_src=0)
        process, theirs, their_nbytes, error, free, *their_token = where.tolist()
        memory = None
        with contextlib.suppress(OSError, ValueError):
            if fd < 0 and not error:
                fd = os.open(f"/proc/{process}/fd/{theirs}", os.O_RDWR)
            memory = mmap.mmap(fd, their_nbytes) if not error else None
        found = memory is not None and memory[:TOKEN] == bytes(their_token)
        everyone = torch.tensor([found, nbytes == their_nbytes], dtype=torch.int64)
        dist.all_reduce(everyone, op=dist.ReduceOp.MIN, group=group)
    finally:
        if fd >= 0:
            os.close(fd)  # the mapping stays
    if not everyone[1]:
        raise ValueError("tensor differs between ranks in size or dtype: give all of them the same")
    if error:
        raise ValueError(
            f"{nbytes:,} bytes of shared memory are needed for {dist.get_world_size(group)} ranks, "
            f"and {os.strerror(error)} ({free:,} bytes are free). {instead}"
        )
    if memory is None or not everyone[0]:
        raise ValueError(
            "the ranks of the group do not share one machine, so they cannot share memory. "
            f"{instead}"
        )
    return memory


def _make(nbytes: int, free: int) -> tuple[int, bytes, int]:
    """Rank 0's part: descriptor, token, and the number of an error, 0 if there was none."""
    fd, token = -1, secrets.token_bytes(TOKEN)
    if nbytes > free:  # the kernel would end a process instead of saying no
        return fd, token, errno.ENOMEM
    try:
        fd = os.memfd_create("dlcourse")
        os.posix_fallocate(fd, 0, nbytes)
        os.pwrite(fd, token, 0)
    except OSError as lack:
        return fd, token, lack.errno or errno.ENOMEM
    return fd, token, 0
