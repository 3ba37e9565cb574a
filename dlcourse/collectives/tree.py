"""Binomial tree: the number of ranks that hold the data doubles in every round.

    round 0     0 -> 1
    round 1     0 -> 2    1 -> 3
    round 2     0 -> 4    1 -> 5    2 -> 6    3 -> 7

So a broadcast to p ranks takes log2(p) rounds, rounded up, where a ring takes p - 1. Played
backwards, with an addition at each arrow, it is a reduce; reduce and then broadcast is an
all-reduce. But every message is the whole tensor: best for small tensors, not for large ones.

Source: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
MPICH", International Journal of High Performance Computing Applications 19, 2005.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from dlcourse.collectives.buffers import as_row, note_change, reducer, scratch
from dlcourse.collectives.p2p import tag_of


def tree_all_reduce(
    tensor: torch.Tensor,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Reduce over all ranks, in place. Every rank ends with bitwise the same numbers.

    Args:
        tensor: any shape and size, contiguous.
        op: ``ReduceOp.SUM`` or ``ReduceOp.MAX``.
        group: the ranks that take part; all by default.
    """
    tree_reduce(tensor, 0, op, group)
    return tree_broadcast(tensor, 0, group)


def tree_broadcast(
    tensor: torch.Tensor, src: int = 0, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Every rank's `tensor` becomes that of `src`, in place.

    Args:
        src: the rank that has the data, by its number in the group.
    """
    row = as_row(tensor, group)  # (n,)
    tag = tag_of(row)
    place, ranks = _places(src, "src", group)
    for have in _powers_of_two(len(ranks)):  # so many places have the data already
        if place < have and place + have < len(ranks):
            dist.send(row, group=group, group_dst=ranks[place + have], tag=tag)
        elif have <= place < 2 * have:
            dist.recv(row, group=group, group_src=ranks[place - have], tag=tag)
            note_change(tensor)
    return tensor


def tree_reduce(
    tensor: torch.Tensor,
    dst: int = 0,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Reduce over all ranks into rank `dst`, in place; the others keep half-made sums.

    Args:
        dst: the rank that gets the result, by its number in the group.
    """
    reduce = reducer(op, tensor)
    row = as_row(tensor, group)  # (n,)
    tag = tag_of(row)
    place, ranks = _places(dst, "dst", group)
    inbox = scratch(1, len(row), like=tensor)[0]  # (n,)
    for keep in reversed(_powers_of_two(len(ranks))):  # so many places go on after this round
        if place < keep and place + keep < len(ranks):
            dist.recv(inbox, group=group, group_src=ranks[place + keep], tag=tag)
            reduce(row, inbox, out=row)
        elif keep <= place < 2 * keep:
            dist.send(row, group=group, group_dst=ranks[place - keep], tag=tag)
    return tensor


def _places(root: int, name: str, group: dist.ProcessGroup | None) -> tuple[int, list[int]]:
    """This rank's place in the tree, and the rank at each place. The root has place 0."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if not 0 <= root < size:
        raise ValueError(f"{name} is {root}: the group has the ranks 0 to {size - 1}")
    return (rank - root) % size, [(root + place) % size for place in range(size)]


def _powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... as far as they are under `limit`."""
    return [1 << i for i in range((limit - 1).bit_length())]
