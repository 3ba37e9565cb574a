"""Ring: every rank talks to two neighbours only, and everybody sends all the time.

A tensor of n elements is cut into p chunks. Chunk c starts at rank c + 1, travels once round the
ring and grows: each rank adds its own part. After p - 1 steps it is complete at rank c
(reduce-scatter). Another p - 1 steps carry the complete chunks round (all-gather).

    step        rank 0 sends     rank 1 sends     rank 2 sends     (p = 3, to the right)
    0           chunk 2          chunk 0          chunk 1          a part each
    1           chunk 1          chunk 2          chunk 0          two parts added up
    then        rank 0 holds chunk 0 complete, rank 1 chunk 1, rank 2 chunk 2

Each rank sends 2 (p - 1) / p times its tensor, whatever p is: under twice, and no other algorithm
needs less. The price is latency: 2 (p - 1) steps, one after the other.

Source: Patarasu and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
workstations", Journal of Parallel and Distributed Computing 69, 2009.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from dlcourse.collectives.buffers import as_row, reducer, scratch
from dlcourse.collectives.p2p import RingNeighbours


def ring_all_reduce(
    tensor: torch.Tensor,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Reduce over all ranks, in place. Every rank ends with bitwise the same numbers.

    Args:
        tensor: any shape and size, contiguous; its size need not divide by the number of ranks.
        op: ``ReduceOp.SUM`` or ``ReduceOp.MAX``.
        group: the ranks that take part; all by default.
    """
    ring_reduce_scatter(tensor, op, group)
    ring_all_gather(tensor, group)
    return tensor


def ring_reduce_scatter(
    tensor: torch.Tensor,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Reduce, and leave chunk r complete at rank r. Arguments as in `ring_all_reduce`.

    Works inside `tensor`: afterwards the other chunks hold half-made sums.

    Returns:
        This rank's complete chunk, a view into `tensor`. Shape: (n / p,), where the first n % p
        ranks have one element more.
    """
    reduce = reducer(op, tensor)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    chunks = as_row(tensor, group).tensor_split(size)  # size x (n / p,)
    inboxes = scratch(size - 1, len(chunks[0]), like=tensor)  # (p - 1, n / p)
    right, left = (rank + 1) % size, (rank - 1) % size
    neighbours = RingNeighbours(to=right, source=left, device=tensor.device, group=group)
    # Every step has its own inbox, so the neighbour on the left never has to wait for us.
    for step in range(size - 1):
        neighbours.expect(inboxes[step, : len(chunks[rank - step - 2])])
    for step in range(size - 1):
        neighbours.send(chunks[rank - step - 1])
        growing = chunks[rank - step - 2]
        neighbours.arrive()
        reduce(growing, inboxes[step, : len(growing)], out=growing)
    neighbours.close()
    return chunks[rank]


def ring_all_gather(tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Chunk r of `tensor` comes from rank r, in every rank, in place.

    Arguments as in `ring_all_reduce`.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    chunks = as_row(tensor, group).tensor_split(size)  # size x (n / p,)
    right, left = (rank + 1) % size, (rank - 1) % size
    neighbours = RingNeighbours(to=right, source=left, device=tensor.device, group=group)
    for step in range(size - 1):
        neighbours.expect(chunks[rank - step - 1])
    for step in range(size - 1):
        neighbours.send(chunks[rank - step])  # my own chunk first, then each one as it comes
        neighbours.arrive()
    neighbours.close()
    return tensor
