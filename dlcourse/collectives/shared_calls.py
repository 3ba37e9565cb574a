"""The other collectives through shared memory: what is written, and who reads which part of it.

All four are `shared_all_reduce` with less to do: write, barrier, read, barrier. Of the boards,
of[r][k] is what rank r has written for rank k.

                     rank r writes            then reads
    reduce-scatter   of[r][k] for every k     of[k][r] of every k, and adds
    all-gather       of[r][r]                 of[k][k] of every k
    all-to-all       of[r][k] for every k     of[k][r] of every k
    broadcast        of[r] whole, if src      of[src] whole

The first barrier says that all have written, the second that all have read: before it nobody may
write on its board again. `one_sided` does without both, by a flag for each pair of ranks.

Names, arguments and order of sums are those of direct.py, which does the same by messages.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from dlcourse.collectives.boards import Boards, row_of
from dlcourse.collectives.buffers import check_all_to_all, check_same_dtype, reducer


def shared_reduce_scatter(
    output: torch.Tensor,
    input: torch.Tensor,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Reduce over all ranks of one machine, and keep part r at rank r. `input` stays as it is.

    The parts are added in rank order, as one process would: ``((x_0 + x_1) + x_2) + ...``.

    Args:
        output: gets this rank's part; may be that part of `input` itself. Shape: (n / p,).
        input: contiguous, on the CPU. Shape: (n,); the first n % p parts have one element more.
        op: ``ReduceOp.SUM`` or ``ReduceOp.MAX``.
        group: the ranks that take part; all by default.

    Raises:
        ValueError: arguments that cannot be; and in every rank, where they are not on one machine
            or their tensors or calls differ.
    """
    reduce = reducer(op, input)
    check_same_dtype(output, input)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    parts = row_of(input, group, "input").tensor_split(size)  # p x (n / p,)
    result = _part(output, "output", len(parts[rank]), group)
    if size == 1:
        result.copy_(parts[0])
        return output
    boards = Boards(input, group, f"reduce_scatter {op}")
    for k in range(size):
        if k != rank:
            boards.of[rank][k].copy_(parts[k])
    boards.barrier_and_check()
    theirs = [parts[rank] if k == rank else boards.of[k][rank] for k in range(size)]
    total = theirs[0]
    for part in theirs[1:]:
        total = reduce(total, part, out=boards.totals[rank])  # `result` may be one of `theirs`
    result.copy_(total)
    dist.barrier(group)
    return output


def shared_all_gather(
    output: torch.Tensor, input: torch.Tensor, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Part r of `output` comes from rank r, in every rank of one machine.

    Args:
        output: contiguous, on the CPU. Shape: (n,); the first n % p parts have one element more.
        input: this rank's part; may be that part of `output` itself. Shape: (n / p,).
        group, Raises: as above.
    """
    check_same_dtype(output, input)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    parts = row_of(output, group, "output").tensor_split(size)  # p x (n / p,)
    mine = _part(input, "input", len(parts[rank]), group)
    if size == 1:
        parts[0].copy_(mine)
        return output
    boards = Boards(output, group, "all_gather")
    boards.of[rank][rank].copy_(mine)
    boards.barrier_and_check()
    for k in range(size):
        parts[k].copy_(boards.of[k][k])
    dist.barrier(group)
    return output


def shared_all_to_all(
    output: torch.Tensor, input: torch.Tensor, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Part k of this rank's `input` becomes part r of rank k's `output`; all parts equally long.

    Where ranks send more to one than to another: ``one_sided.all_to_all``.

    Args:
        output, input: contiguous, on the CPU, cut along dimension 0. Shape: (rows, ...), where
            rows divide by p.
        group, Raises: as above.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    arriving, leaving = row_of(output, group, "output"), row_of(input, group, "input")
    check_all_to_all(output, input, None, None, size, group)
    if size == 1:
        arriving.copy_(leaving)
        return output
    boards = Boards(input, group, "all_to_all")
    for board, part in zip(boards.of[rank], leaving.tensor_split(size), strict=True):
        board.copy_(part)
    boards.barrier_and_check()
    for k, part in enumerate(arriving.tensor_split(size)):
        part.copy_(boards.of[k][rank])
    dist.barrier(group)
    return output


def shared_broadcast(
    tensor: torch.Tensor, src: int = 0, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Every rank's `tensor` becomes that of `src`, in place.

    Args:
        tensor: any shape and size, contiguous, on the CPU.
        src: the rank that has the data, by its number in the group.
        group, Raises: as above.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    parts = row_of(tensor, group).tensor_split(size)  # p x (n / p,)
    if not 0 <= src < size:
        raise ValueError(f"src is {src}: the group has the ranks 0 to {size - 1}")
    if size == 1:
        return tensor
    boards = Boards(tensor, group, f"broadcast src={src}")
    if rank == src:
        for board, part in zip(boards.of[src], parts, strict=True):
            board.copy_(part)
    boards.barrier_and_check()
    if rank != src:
        for board, part in zip(boards.of[src], parts, strict=True):
            part.copy_(board)
    dist.barrier(group)
    return tensor


def _part(
    tensor: torch.Tensor, name: str, numel: int, group: dist.ProcessGroup | None
) -> torch.Tensor:
    if tensor.numel() != numel:
        raise ValueError(
            f"{name} has {tensor.numel()} elements: this rank's part has {numel}. "
            f"Make {name} that long"
        )
    return row_of(tensor, group, name)
