"""Shared memory: ranks on one machine need no wire at all.

Each rank puts its tensor where all can read it. Then rank r adds up part r of all of them, and
everybody takes the parts. Data is copied by plain loads and stores; the only messages are two
barriers that say "ready". MPI and NCCL do this inside a machine; it works only there.

    write               barrier     read and add             barrier     read
    board 0: x_0                    rank 0: all parts 0                  all totals
    board 1: x_1                    rank 1: all parts 1                  all totals
"""

from __future__ import annotations

import mmap
import os
import secrets

import torch
import torch.distributed as dist

from dlcourse.collectives.p2p import flat, reducer

_TOKEN = 16  # bytes at the start that say whose memory it is
_rows: dict[tuple[dist.ProcessGroup | None, torch.dtype], torch.Tensor] = {}


def shared_all_reduce(
    tensor: torch.Tensor,
    op: dist.ReduceOp = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Reduce over all ranks of one machine, in place, on the CPU.

    Every rank ends with bitwise the same numbers, added in rank order. The shared memory stays
    for the next call: p + 1 times the largest tensor so far.

    Args:
        tensor: any shape and size, contiguous.
        op: ``ReduceOp.SUM`` or ``ReduceOp.MAX``.
        group: the ranks that take part; all by default.
    """
    reduce = reducer(op)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    parts = flat(tensor, group).tensor_split(size)  # p x (n / p,)
    if size == 1 or not tensor.numel():
        return tensor
    *boards, totals = (
        row.tensor_split(size) for row in _shared_rows(tensor.numel(), tensor, group)
    )  # p boards and the totals; each p x (n / p,)
    for k in range(size):
        if k != rank:
            boards[rank][k].copy_(parts[k])  # for rank k to read
    dist.barrier(group)
    theirs = [parts[rank] if k == rank else boards[k][rank] for k in range(size)]
    total = theirs[0]
    for part in theirs[1:]:
        total = reduce(total, part, out=totals[rank])
    dist.barrier(group)
    for part, total in zip(parts, totals, strict=True):
        part.copy_(total)
    return tensor  # no third barrier: before `totals` change again, all pass the first one


def _shared_rows(numel: int, like: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Rows that all ranks of the group see. Shape: (p + 1, numel)."""
    if like.device.type != "cpu":
        raise ValueError(f"tensor is on {like.device.type}: shared memory is the CPU's. Use a ring")
    count, key = dist.get_world_size(group) + 1, (group, like.dtype)
    if key not in _rows or _rows[key].numel() < count * numel:
        buffer = _map(count * numel * like.element_size() + _TOKEN, group)
        _rows[key] = torch.frombuffer(buffer, dtype=like.dtype, offset=_TOKEN)
    return _rows[key][: count * numel].view(count, numel)


def _map(nbytes: int, group: dist.ProcessGroup | None) -> mmap.mmap:
    """The same memory in every rank: nameless, so that nothing is left when the ranks end."""
    if not hasattr(os, "memfd_create"):
        raise ValueError("this system has no memfd_create (Linux has). Use ring_all_reduce instead")
    where = torch.zeros(2 + _TOKEN, dtype=torch.int64)  # process, file, token
    if dist.get_rank(group) == 0:
        fd, token = os.memfd_create("dlcourse"), secrets.token_bytes(_TOKEN)
        os.truncate(fd, nbytes)
        os.write(fd, token)
        where = torch.tensor([os.getpid(), fd, *token])
    dist.broadcast(where, group=group, group_src=0)
    process, theirs, *token = where.tolist()
    memory = None
    try:
        if dist.get_rank(group) != 0:
            fd = os.open(f"/proc/{process}/fd/{theirs}", os.O_RDWR)
        memory = mmap.mmap(fd, nbytes)
        found = memory[:_TOKEN] == bytes(token)
    except (OSError, ValueError):
        found = False
    everyone = torch.tensor([int(found)])
    dist.all_reduce(everyone, op=dist.ReduceOp.MIN, group=group)
    if memory is not None:
        os.close(fd)  # the mapping stays
    if not everyone.item():
        raise ValueError(
            "the ranks of the group do not share one machine, so they cannot share memory. "
            "Use ring_all_reduce instead"
        )
    return memory
