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

import torch
import torch.distributed as dist

from dlcourse.collectives.buffers import as_row, reducer
from dlcourse.collectives.p2p import tag_of
from dlcourse.collectives.shared_memory import TOKEN, map_shared

_maps: dict[dist.ProcessGroup | None, mmap.mmap] = {}


def shared_all_reduce(
    tensor: torch.Tensor,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Reduce over all ranks of one machine, in place, on the CPU.

    Every rank ends with bitwise the same numbers, added in rank order. The shared memory stays
    for the next call: p + 1 times the largest tensor so far.

    Raises:
        ValueError: in every rank, where they are not on one machine or their tensors differ.

    Args:
        tensor: any shape and size, contiguous.
        op: ``ReduceOp.SUM`` or ``ReduceOp.MAX``.
        group: the ranks that take part; all by default.
    """
    reduce = reducer(op, tensor)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    parts = as_row(tensor, group).tensor_split(size)  # p x (n / p,)
    if size == 1:
        return tensor
    kinds, rows = _shared_rows(tensor, group)
    kinds[rank] = tag_of(tensor)
    if not rows:  # there is less room than that: in all ranks, or they are told
        _check_same(kinds, group)
        kinds, rows = _shared_rows(tensor, group, new=True)
        kinds[rank] = tag_of(tensor)
    *boards, totals = (row.tensor_split(size) for row in rows)  # p boards; each p x (n / p,)
    for k in range(size):
        if k != rank:
            boards[rank][k].copy_(parts[k])  # for rank k to read
    _check_same(kinds, group)
    theirs = [parts[rank] if k == rank else boards[k][rank] for k in range(size)]
    total = theirs[0]
    for part in theirs[1:]:
        total = reduce(total, part, out=totals[rank])
    dist.barrier(group)
    for part, total in zip(parts, totals, strict=True):
        part.copy_(total)
    return tensor  # no third barrier: before `totals` change again, all pass the first one


def _check_same(kinds: torch.Tensor, group: dist.ProcessGroup | None) -> None:
    """A barrier, after which unlike tensors are refused in all ranks: none has read the others'."""
    dist.barrier(group)
    if kinds.unique().numel() > 1:
        dist.barrier(group)  # all have seen it before one can begin another call
        raise ValueError("tensor differs between ranks in size or dtype: give all of them the same")


def _shared_rows(
    like: torch.Tensor, group: dist.ProcessGroup | None, *, new: bool = False
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Memory that all ranks of the group see.

    Args:
        new: make more of it, together; else that of earlier calls, if there is any.

    Returns:
        A number of each rank that says what its tensor is like, (p,), and p + 1 rows, (numel,);
        no rows where they would be too short for it.
    """
    if like.device.type != "cpu":
        raise ValueError(f"tensor is on {like.device.type}: shared memory is the CPU's. Use a ring")
    size, key = dist.get_world_size(group), group or dist.group.WORLD
    start, row_bytes = TOKEN + _aligned(8 * size), _aligned(like.nbytes)
    nbytes = start + (size + 1) * row_bytes
    if key not in _maps or new:
        _maps[key] = map_shared(nbytes, group, instead="Use ring_all_reduce instead")
    # Rows keep their places in memory, whatever their length: a rank that is ahead writes to its
    # board while others still read the totals of the call before
    row_bytes = (len(_maps[key]) - start) // (size + 1)
    kinds = torch.frombuffer(_maps[key], dtype=torch.int64, offset=TOKEN, count=size)
    if len(_maps[key]) < nbytes:
        return kinds, []
    if not like.numel():
        return kinds, [as_row(like, group)] * (size + 1)
    memory = torch.frombuffer(_maps[key], dtype=torch.uint8, offset=start).view(size + 1, row_bytes)
    return kinds, [row.view(like.dtype) for row in memory[:, : like.nbytes]]


def _aligned(nbytes: int) -> int:
    return max(-(-nbytes // 16), 1) * 16
