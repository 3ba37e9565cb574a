"""Shared memory: ranks on one machine need no wire at all.

Each rank puts its tensor where all can read it. Then rank r adds up part r of all of them, and
everybody takes the parts. Data is copied by plain loads and stores; the only messages are two
barriers that say "ready". MPI and NCCL do this inside a machine; it works only there.

    write               barrier     read and add             barrier     read
    board 0: x_0                    rank 0: all parts 0                  all totals
    board 1: x_1                    rank 1: all parts 1                  all totals

The other collectives over the same boards are in shared_calls.py.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from dlcourse.collectives.boards import Boards, row_of
from dlcourse.collectives.buffers import reducer


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
    parts = row_of(tensor, group).tensor_split(size)  # p x (n / p,)
    if size == 1:
        return tensor
    boards = Boards(tensor, group, f"all_reduce {op}")
    for k in range(size):
        if k != rank:
            boards.of[rank][k].copy_(parts[k])  # for rank k to read
    boards.barrier_and_check()
    theirs = [parts[rank] if k == rank else boards.of[k][rank] for k in range(size)]
    total = theirs[0]
    for part in theirs[1:]:
        total = reduce(total, part, out=boards.totals[rank])
    dist.barrier(group)
    for part, total in zip(parts, boards.totals, strict=True):
        part.copy_(total)
    return tensor  # no third barrier: before `totals` change again, all pass the first one
