"""The memory that collectives work on: a tensor as one row, inboxes, and the reduction of two."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_REDUCERS: dict[dist.ReduceOp.RedOpType, Callable[..., Tensor]] = {
    dist.ReduceOp.SUM: torch.add,
    dist.ReduceOp.MAX: torch.maximum,
}
_scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def as_row(tensor: Tensor, group: dist.ProcessGroup | None, name: str = "tensor") -> Tensor:
    """`tensor` as one row that shares its memory. Shape: any -> (numel,)."""
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
    return tensor.detach().view(-1)


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
    key, numel = (like.device, like.dtype), rows * columns
    if key not in _scratch or _scratch[key].numel() < numel:
        _scratch[key] = torch.empty(numel, dtype=like.dtype, device=like.device)
    return _scratch[key][:numel].view(rows, columns)


def views_like(row: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """For each tensor its part of ``row``, as a view in the tensor's shape. A tail may be left."""
    sizes = [tensor.numel() for tensor in tensors]
    parts = row[: sum(sizes)].split(sizes)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
