"""Direct exchange: every rank sends every other rank its part, all at once.

As few bytes as the ring, and one step where the ring takes p - 1. The price: each rank keeps
p - 1 connections busy at the same moment. Good among a few ranks on one machine; on a large
network those p (p - 1) messages get into each other's way.

Names and arguments are those of torch.distributed's ``reduce_scatter_tensor``,
``all_gather_into_tensor``, ``all_reduce`` and ``all_to_all_single``, so that one can take the
place of the other. Sizes need not divide by the number of ranks p: of n elements, the first
n % p ranks have one more (``Tensor.tensor_split``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from dlcourse.collectives.buffers import (
    as_row,
    check_all_to_all,
    check_same_dtype,
    reducer,
    scratch,
)
from dlcourse.collectives.p2p import exchange


def all_reduce(
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
    mine = as_row(tensor, group).tensor_split(dist.get_world_size(group))[dist.get_rank(group)]
    reduce_scatter(mine, tensor, op, group)
    all_gather(tensor, mine, group)
    return tensor


def reduce_scatter(
    output: torch.Tensor,
    input: torch.Tensor,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Reduce over all ranks, and keep part r at rank r. `input` stays as it is.

    The parts are added in rank order, as one process would: ``((x_0 + x_1) + x_2) + ...``.

    Args:
        output: gets this rank's part; may be that part of `input` itself. Shape: (n / p,).
        input: contiguous. Shape: (n,).
        op, group: as above.
    """
    reduce = reducer(op, input)
    check_same_dtype(output, input)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    parts = as_row(input, group, "input").tensor_split(size)  # p x (n / p,)
    result = _sized(output, "output", len(parts[rank]), group)
    inboxes = scratch(size - 1, len(result), like=input)  # (p - 1, n / p)
    arrived = list(inboxes)
    arrived.insert(rank, parts[rank])  # now arrived[k] is what rank k has for this rank
    peers = _peers(rank, size)
    exchange(
        sends=[(parts[k], k) for k in peers],
        receives=[(arrived[k], k) for k in peers],
        group=group,
    )
    total = arrived[0]
    for k in range(1, size):
        total = reduce(total, arrived[k], out=result if k == size - 1 else inboxes[0])
    if size == 1:
        result.copy_(total)
    return output


def all_gather(
    output: torch.Tensor, input: torch.Tensor, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Part r of `output` comes from rank r, in every rank.

    Args:
        output: contiguous. Shape: (n,).
        input: this rank's part; may be that part of `output` itself. Shape: (n / p,).
        group: as above.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    parts = as_row(output, group, "output").tensor_split(size)  # p x (n / p,)
    mine = _sized(input, "input", len(parts[rank]), group)
    check_same_dtype(output, input)
    if mine.data_ptr() != parts[rank].data_ptr():
        parts[rank].copy_(mine)
    peers = _peers(rank, size)
    exchange(
        sends=[(parts[rank], k) for k in peers],
        receives=[(parts[k], k) for k in peers],
        group=group,
    )
    return output


def all_to_all(
    output: torch.Tensor,
    input: torch.Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Part k of this rank's `input` becomes part r of rank k's `output`: a transpose.

    Args:
        output, input: contiguous, cut along dimension 0. Shape: (rows, ...).
        output_split_sizes, input_split_sizes: rows from and to each rank; equal if None.
        group: as above.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    sent, expected = check_all_to_all(
        output, input, output_split_sizes, input_split_sizes, size, group
    )
    leaving, arriving = input.detach().split(sent), output.detach().split(expected)
    arriving[rank].copy_(leaving[rank].view_as(arriving[rank]))
    peers = _peers(rank, size)
    exchange(
        sends=[(leaving[k], k) for k in peers],
        receives=[(arriving[k], k) for k in peers],
        group=group,
    )
    return output


def _peers(rank: int, size: int) -> list[int]:
    """The other ranks, the next one first: else all would begin with rank 0."""
    return [(rank + k) % size for k in range(1, size)]


def _sized(
    tensor: torch.Tensor, name: str, numel: int, group: dist.ProcessGroup | None
) -> torch.Tensor:
    if tensor.numel() != numel:
        raise ValueError(
            f"{name} has {tensor.numel()} elements: this rank's part has {numel}. "
            f"Make {name} that long"
        )
    return as_row(tensor, group, name)
