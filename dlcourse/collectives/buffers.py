"""The memory that collectives work on: a tensor as one row, inboxes, and the reduction of two."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_REDUCERS: dict[dist.ReduceOp.RedOpType, Callable[..., Tensor]] = {
    dist.ReduceOp.SUM: torch.add,
    dist.ReduceOp.MAX: torch.maximum,
}
_scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def as_row(tensor: Tensor, group: dist.ProcessGroup | None, name: str = "tensor") -> Tensor:
    """`tensor` as one row that shares its memory. Shape: any -> (numel,)."""
    check_one_piece(tensor, group, name)
    return tensor.detach().view(-1)


def check_one_piece(tensor: Tensor, group: dist.ProcessGroup | None, name: str = "tensor") -> None:
    """Refuse a tensor that does not lie in memory as one piece, or where the group cannot reach."""
    check_member(group)
    if hasattr(tensor, "__tensor_flatten__"):  # so torch knows a tensor made of others
        raise ValueError(
            f"{name} is a {type(tensor).__name__}, which holds other tensors: give the plain "
            "torch.Tensor that this rank is to send, such as a DTensor's to_local()"
        )
    if tensor.is_conj() or tensor.is_neg():
        raise ValueError(
            f"{name} is a view that only notes to be conjugate or negative: what lies in memory is "
            f"something else. Call {name}.resolve_conj().resolve_neg() first"
        )
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} is not contiguous (shape {tuple(tensor.shape)}, strides {tensor.stride()}): "
            "a collective that works in place needs a tensor that lies in memory as one piece. "
            f"Call {name}.contiguous() first"
        )
    device = tensor.device.type
    if device != "cpu" and f"{device}:gloo" in dist.get_backend_config(group):
        raise ValueError(
            f"{name} is on {device}, but the group talks over Gloo, which sends from CPU memory "
            f"only. Pass {name}.cpu(), or make the ranks with a GPU each, so that they use NCCL"
        )


def check_member(group: dist.ProcessGroup | None) -> None:
    """Refuse a rank that is not in the group: its number there would be -1."""
    if dist.get_rank(group) < 0:
        raise ValueError(
            f"group does not contain rank {dist.get_rank()}: only its own ranks make this call. "
            "Write `if dist.get_rank(group) >= 0:` before it"
        )


def check_all_to_all(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Sequence[int] | None,
    input_split_sizes: Sequence[int] | None,
    size: int,
    group: dist.ProcessGroup | None,
) -> tuple[list[int], list[int]]:
    """Refuse what cannot be the arguments of an all-to-all among ``size`` ranks.

    Returns:
        Rows for each rank, and rows from each.
    """
    sent = _split_sizes(input, "input", input_split_sizes, size, group)
    expected = _split_sizes(output, "output", output_split_sizes, size, group)
    check_same_dtype(output, input)
    rank = dist.get_rank(group)
    leaving, arriving = (
        rows[rank] * tensor.shape[1:].numel()
        for rows, tensor in ((sent, input), (expected, output))
    )
    if leaving != arriving:  # copy_ would repeat a single row
        raise ValueError(
            f"this rank sends itself {leaving} numbers ({sent[rank]} rows of input) and expects "
            f"{arriving} ({expected[rank]} rows of output): make "
            f"output_split_sizes[{rank}] what input_split_sizes[{rank}] says, and rows equally long"
        )
    if output.numel() and input.numel():
        first, second = output.data_ptr(), input.data_ptr()
        if first < second + input.nbytes and second < first + output.nbytes:
            raise ValueError("output and input share memory: make output another tensor")
    return sent, expected


def check_same_dtype(output: Tensor, input: Tensor) -> None:
    """Refuse two types in one call."""
    if output.dtype != input.dtype:
        raise ValueError(f"output is {output.dtype} and input {input.dtype}: convert one of them")


def note_change(tensor: Tensor) -> None:
    """Memory was written past torch: who has kept the tensor for a gradient is to know it."""
    if not tensor.is_inference():  # such a tensor can be kept for none
        torch.autograd.graph.increment_version(tensor)


def _split_sizes(
    tensor: Tensor,
    name: str,
    split_sizes: Sequence[int] | None,
    size: int,
    group: dist.ProcessGroup | None,
) -> list[int]:
    check_one_piece(tensor, group, name)
    if not tensor.dim():
        raise ValueError(f"{name} has no dimension of rows to share out: give {name}[None]")
    rows = tensor.shape[0]
    if split_sizes is None:
        if rows % size:
            raise ValueError(
                f"{name} has {rows} rows, which {size} ranks cannot share equally: "
                f"pass {name}_split_sizes"
            )
        return [rows // size] * size
    sizes = list(split_sizes)
    whole = len(sizes) == size and {*map(type, sizes)} == {int}
    if not whole or min(sizes) < 0 or sum(sizes) != rows:
        raise ValueError(
            f"{name}_split_sizes is {sizes}: it needs {size} numbers, one for each "
            f"rank, that add up to the {rows} rows of {name}"
        )
    return sizes


def reducer(op: dist.ReduceOp.RedOpType, like: Tensor) -> Callable[..., Tensor]:
    """The function for `op` on tensors such as `like`; call it as ``reduce(a, b, out=c)``."""
    if op not in _REDUCERS:
        raise ValueError(f"op is {op}: use ReduceOp.SUM or ReduceOp.MAX")
    if not _can(_REDUCERS[op], like.dtype, like.device):
        raise ValueError(
            f"op is {op} and the tensor {like.dtype}, for which torch has no "
            f"torch.{_REDUCERS[op].__name__}: convert it to another type"
        )
    return _REDUCERS[op]


@functools.cache
def _can(reduce: Callable[..., Tensor], dtype: torch.dtype, device: torch.device) -> bool:
    one = torch.ones(1, device=device).to(dtype)
    try:
        reduce(one, one, out=one)
    except RuntimeError:  # found out before anything is sent
        return False
    return True


def scratch(rows: int, columns: int, like: Tensor) -> Tensor:
    """Uninitialised memory that stays allocated for the next call. Shape: (rows, columns)."""
    if isinstance(like, FakeTensor):  # has no memory that a real call could use later
        return like.new_empty(rows, columns)
    key, numel = (like.device, like.dtype), rows * columns
    if key not in _scratch or _scratch[key].numel() < numel:
        with torch.inference_mode(False):  # what is made inside it can be written to only there
            _scratch[key] = torch.empty(numel, dtype=like.dtype, device=like.device)
    return _scratch[key][:numel].view(rows, columns)


def views_like(row: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """For each tensor its part of ``row``, as a view in the tensor's shape. A tail may be left."""
    sizes = [tensor.numel() for tensor in tensors]
    parts = row[: sum(sizes)].split(sizes)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
