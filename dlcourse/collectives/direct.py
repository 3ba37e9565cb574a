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

from dlcourse.collectives.buffers import as_row, reducer, scratch
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
    _same_dtype(output, input)
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
    _same_dtype(output, input)
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
    leaving = _parts(input, "input", input_split_sizes, group)
    arriving = _parts(output, "output", output_split_sizes, group)
    _same_dtype(output, input)
    if output.numel() and input.numel() and _share_memory(output, input):
        raise ValueError("output and input share memory: make output another tensor")
    arriving[rank].copy_(leaving[rank])
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


def _same_dtype(output: torch.Tensor, input: torch.Tensor) -> None:
    if output.dtype != input.dtype:
        raise ValueError(f"output is {output.dtype} and input {input.dtype}: convert one of them")


def _share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two contiguous tensors have any byte in common."""
    first, second = a.data_ptr(), b.data_ptr()
    return first < second + b.nbytes and second < first + a.nbytes


def _sized(
    tensor: torch.Tensor, name: str, numel: int, group: dist.ProcessGroup | None
) -> torch.Tensor:
    if tensor.numel() != numel:
        raise ValueError(
            f"{name} has {tensor.numel()} elements: this rank's part has {numel}. "
            f"Make {name} that long"
        )
    return as_row(tensor, group, name)


def _parts(
    tensor: torch.Tensor,
    name: str,
    split_sizes: Sequence[int] | None,
    group: dist.ProcessGroup | None,
) -> list[torch.Tensor]:
    size = dist.get_world_size(group)
    as_row(tensor, group, name)  # raises where the parts would not be contiguous
    rows = tensor.shape[0] if tensor.dim() else 0
    if split_sizes is None:
        if rows % size:
            raise ValueError(
                f"{name} has {rows} rows, which {size} ranks cannot share equally: "
                f"pass {name}_split_sizes"
            )
        split_sizes = [rows // size] * size
    if len(split_sizes) != size or sum(split_sizes) != rows:
        raise ValueError(
            f"{name}_split_sizes is {list(split_sizes)}: it needs {size} numbers, one for each "
            f"rank, that add up to the {rows} rows of {name}"
        )
    return list(tensor.detach().split(list(split_sizes)))
