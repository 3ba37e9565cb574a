"""The tensors inside other things: containers, and tensors that wrap tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Tensors in lists, tuples and dicts, at most `depth` of these inside each other."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part, depth - 1)


def bytes_of(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; of a sparse one, of its indices and values."""
    if tensor.layout == torch.strided:
        return tensor.nbytes
    if tensor.layout == torch.sparse_coo:
        return tensor._indices().nbytes + tensor._values().nbytes
    rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    indices = (
        (tensor.crow_indices(), tensor.col_indices())
        if rows
        else (tensor.ccol_indices(), tensor.row_indices())
    )
    return sum(part.nbytes for part in (*indices, tensor.values()))


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor is made of others (DTensor, ...)."""
    return is_traceable_wrapper_subclass(tensor)


def inner_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a wrapper is made of."""
    if is_lazy(tensor):  # of a module that has seen no input yet: answers no question at all
        return
    if is_wrapper(tensor):
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        for name in names:
            part = getattr(tensor, name)
            if isinstance(part, Tensor):  # a DTensor names its device mesh, too
                yield part
    elif type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__:
        yield tensor.as_subclass(Tensor)
