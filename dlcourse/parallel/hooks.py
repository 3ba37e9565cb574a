"""Hooks of autograd that wrappers of a model use."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def weakly(method: Callable[..., None]) -> Callable[..., None]:
    """A hook that calls ``method`` and does not keep its object alive.

    Torch hides hooks of tensors from Python's garbage collector, so that one that holds a model
    would never be freed.
    """
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        bound = reference()
        if bound is not None:
            bound(*args)

    return call


def tensors_in(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Tensors with a graph in what a module returns: in tuples, dicts, and objects' attributes."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            # What is changed in place through a view later passes through its base alone
            for tensor in (leaf, leaf._base):
                if tensor is not None and tensor.grad_fn is not None:
                    yield tensor
        elif depth and isinstance(leaf, Mapping | list | tuple):  # subclasses are leaves there
            values = leaf.values() if isinstance(leaf, Mapping) else leaf
            yield from tensors_in([*values], depth - 1)
        elif depth and hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module | type):
            yield from tensors_in(vars(leaf), depth - 1)  # such as a dataclass


def in_backward() -> bool:
    """Whether backward is under way in this thread."""
    return torch._C._current_graph_task_id() != -1
