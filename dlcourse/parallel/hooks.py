"""Hooks of autograd that wrappers of a model use."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary


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


_scaled = WeakTensorKeyDictionary()  # parameters: the factor and the hook


def scale_gradient(parameter: nn.Parameter, factor: float) -> None:
    """Multiply the gradient that is there by ``factor``, and what later backwards add to it.

    With it a sum over ranks can be had by a mean, which may be made after each of several
    backwards: it leaves alone what is equal in all ranks already, a sum would count it again.
    """
    known, hook = _scaled.get(parameter, (1.0, None))
    if factor == known:
        return
    if hook is not None:
        hook.remove()
    if parameter.grad is not None:
        parameter.grad *= factor / known
    trains = parameter.requires_grad
    parameter.requires_grad_(True)  # a frozen one takes no hook
    _scaled[parameter] = factor, parameter.register_hook(lambda gradient: gradient * factor)
    parameter.requires_grad_(trains)


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
