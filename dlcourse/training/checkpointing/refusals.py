"""What a checkpoint cannot repeat: errors in place of wrong gradients.

The second forward must be the first one over again. Torch counts the in-place changes of every
tensor; a count that has changed is a change that the second forward would see, or make once more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

from dlcourse.parallel.zero_module import ShardedModule

Function = Callable[..., Tensor]

_OUT_OF_PLACE = "write y = x + 1 instead of x += 1, or clone() first"
_NEWER_KIND = (
    "our checkpoint knows a plain backward() only; use torch's checkpoint(..., use_reentrant=False)"
)


def refuse_shards(function: Function) -> None:
    """A ZeRO model reduces gradients while its own backward runs: checkpoints belong inside."""
    if isinstance(function, ShardedModule):
        kind = type(function).__name__
        raise ValueError(
            f"checkpoint() of a {kind}: put checkpoints into the model first, as "
            f"checkpoint_blocks(gpt, segments) does, and give it to {kind} then"
        )


def save_inputs(ctx: Any, inputs: tuple[Any, ...]) -> None:
    """Store tensors where autograd watches over them, and the rest beside them."""
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor) and any(
            isinstance(leaf, Tensor) and leaf.grad_fn is not None for leaf in tree_leaves(x)
        ):
            raise ValueError(
                f"input {i} of {_name(ctx.function)} is a {type(x).__name__} with a tensor inside "
                "that has a graph, which backward would go through twice: give checkpoint() each "
                "tensor as an input of its own"
            )
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.others = [None if isinstance(x, Tensor) else (x,) for x in inputs]


def saved_inputs(ctx: Any) -> list[Any]:
    """The inputs in their order, or an error if one, or a module, was changed meanwhile."""
    for what, tensor, count in ctx.parameters + ctx.seen.of("buffer"):
        if tensor._version != count:
            raise ValueError(
                f"{what} of {_name(ctx.function)} was changed after its checkpoint, so the second "
                "forward would be another function: call backward() before "
                + ("you change a buffer" if what.startswith("buffer") else "the optimizer's step()")
            )
    for module, training in ctx.seen.modes.values():
        if module.training != training:
            raise ValueError(
                f"{type(module).__name__} was set to {'eval' if training else 'train'}() after its "
                "checkpoint, so the second forward would be another function: call backward() "
                "first, or set it back"
            )
    try:
        tensors = iter(ctx.saved_tensors)
    except RuntimeError as error:
        raise ValueError(
            f"an input of {_name(ctx.function)} was changed in place after its checkpoint, so the "
            f"second forward would start from other numbers: {_OUT_OF_PLACE}"
        ) from error
    return [next(tensors) if other is None else other[0] for other in ctx.others]


class Versions:
    """Torch's counts of in-place changes: of inputs, and of what the modules own that run in the
    block."""

    def __init__(self, function: Function, inputs: tuple[Any, ...]) -> None:
        self.seen: dict[int, tuple[str, Tensor, int]] = {}
        self.modes: dict[int, tuple[nn.Module, bool]] = {}  # train() or eval()
        for i, x in enumerate(tree_leaves(inputs)):
            if isinstance(x, Tensor):
                self.add(f"input {i}", x)
        if isinstance(function, nn.Module):
            self.enter(function)

    def __enter__(self) -> Versions:
        self.hook = register_module_forward_pre_hook(self.enter)  # a closure may hold modules
        return self

    def __exit__(self, *exception: Any) -> None:
        self.hook.remove()

    def enter(self, module: nn.Module, inputs: Any = ()) -> None:
        self.modes.setdefault(id(module), (module, module.training))
        for name, buffer in module.named_buffers():
            self.add(f"buffer {name}", buffer)
        for name, parameter in module.named_parameters():
            self.add(f"parameter {name}", parameter)

    def add(self, what: str, tensor: Tensor) -> None:
        self.seen.setdefault(id(tensor), (what, tensor, tensor._version))  # torch counts writes

    def without_inputs(self) -> Versions:
        """Autograd watches over the inputs from here on, and lets each go after its backward."""
        self.seen = {i: row for i, row in self.seen.items() if not row[0].startswith("input")}
        return self

    def of(self, kind: str) -> list[tuple[str, Tensor, int]]:
        return [row for row in self.seen.values() if row[0].startswith(kind)]


def refuse_changes(function: Function, versions: Versions, output: Any) -> None:
    """An error for what the second forward could not repeat: it would change things once more."""
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{_name(function)} returns a {type(output).__name__}, not one tensor: checkpoint a "
            "piece of the model with one result"
        )
    for what, tensor, count in versions.seen.values():
        if tensor._version != count:
            buffer = "leave that module outside the checkpoint, or call eval() on it"
            raise ValueError(
                f"{_name(function)} changes {what} in place, and would change it again in the "
                f"second forward: {buffer if what.startswith('buffer') else _OUT_OF_PLACE}"
            )


def fills_all_grads(ctx: Any) -> bool:
    """False in ``torch.autograd.grad`` and ``backward(inputs=...)``, which want no others filled.

    Parameters are no inputs of this node, so it cannot tell whether they are asked for.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"create_graph=True through {_name(ctx.function)}: {_NEWER_KIND}")
    plain = torch.autograd._is_checkpoint_valid()
    if not plain and any(parameter.requires_grad for _, parameter, _ in ctx.parameters):
        warnings.warn(
            f"autograd.grad() or backward(inputs=...) through {_name(ctx.function)}: its inputs "
            f"get their gradients, its parameters none, also if you asked for some: {_NEWER_KIND}",
            stacklevel=2,
        )
    return plain


@contextmanager
def inputs_alone(function: Function) -> Iterator[None]:
    """Say what a graph that was gone through before means here: it is not of the second forward."""
    try:
        yield
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise RuntimeError(
            f"{_name(function)} uses a tensor that others use as well, and that is no input of its "
            "own (a closure's, say), so backward came to its "
            "graph twice: give checkpoint() each such tensor as an input"
        ) from error


def _name(function: Function) -> str:
    return getattr(function, "__name__", type(function).__name__)
