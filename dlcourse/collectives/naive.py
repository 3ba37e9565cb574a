"""Naive: everybody sends to rank 0, rank 0 reduces and sends the result back to everybody.

Right, short, and it does not scale: all of the traffic goes through one rank. Its wire carries
2 (p - 1) times the tensor while every other wire carries it twice.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from dlcourse.collectives.buffers import as_row, note_change, reducer, scratch
from dlcourse.collectives.p2p import tag_of


def naive_all_reduce(
    tensor: torch.Tensor,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Reduce over all ranks, in place. Every rank ends with bitwise the same numbers.

    The parts are added in rank order, so that the result is that of
    ``((x_0 + x_1) + x_2) + ...`` in one process, to the last bit.

    Args:
        tensor: any shape and size, contiguous.
        op: ``ReduceOp.SUM`` or ``ReduceOp.MAX``.
        group: the ranks that take part; all by default.
    """
    reduce = reducer(op, tensor)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    total = as_row(tensor, group)  # (n,)
    tag, others = tag_of(total), range(1, size)  # the tag keeps tensors unlike this one away
    if rank == 0:
        inbox = scratch(1, len(total), like=tensor)[0]  # (n,)
        for source in others:
            dist.recv(inbox, group=group, group_src=source, tag=tag)
            reduce(total, inbox, out=total)
        for destination in others:
            dist.send(total, group=group, group_dst=destination, tag=tag)
    else:
        dist.send(total, group=group, group_dst=0, tag=tag)
        dist.recv(total, group=group, group_src=0, tag=tag)
        note_change(tensor)
    return tensor
