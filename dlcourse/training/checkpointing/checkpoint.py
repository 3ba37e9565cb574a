"""Activation checkpointing: keep a function's inputs, and compute the inside again when needed.

Autograd stores what backward will read, for every operator of the model, until backward comes by.
A checkpoint stores the inputs of a whole piece of the model instead. When backward reaches the
piece, it runs forward once more, with autograd watching, and goes on from there:

    x_BTC = checkpoint(block, x_BTC)        # instead of block(x_BTC)

The second forward must be the first one over again. So the random state and autocast (torch's, and
that of ``autocast.py``) are put back to what they were; what a piece changes in place cannot be put
back, and is refused.

Sources: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016,
https://arxiv.org/abs/1604.06174. The same in torch: ``torch.utils.checkpoint.checkpoint(...,
use_reentrant=True)``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import tree_leaves

Function = Callable[..., Tensor]


def checkpoint(function: Function, *inputs: Any, keep_random_state: bool = True) -> Tensor:
    """``function(*inputs)``, of which only the inputs are stored until backward.

    Args:
        function: a module or a function of tensors, whose result is one tensor. Parameters that
            it uses get their gradients as always.
        keep_random_state: run the second forward with the random numbers of the first. Without,
            dropout drops other values in the second forward, and the gradients are wrong.

    Raises:
        ValueError: the result is not one tensor, or ``function`` changes an input, or a parameter
            or buffer of a module in place.
        RuntimeError: in backward, if that is asked for a graph of its own (``create_graph``).

    ``torch.autograd.grad`` and ``backward(inputs=...)`` reach the inputs alone, not parameters.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)  # nothing would be stored anyway
    begin = None
    if not any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        begin = torch.empty((), requires_grad=True)  # or backward would never come by
    return Checkpoint.apply(begin, function, keep_random_state, *inputs)


class Checkpoint(torch.autograd.Function):
    """One node of the graph that stands for a whole piece of the model."""

    @staticmethod
    def forward(
        ctx: Any, begin: Tensor | None, function: Function, keep_random_state: bool, *inputs: Any
    ) -> Tensor:
        ctx.function = function
        ctx.surroundings = Surroundings(function, inputs, keep_random_state)
        # A Function's forward runs without autograd: nothing is stored. But where no input requires
        # a gradient, only autograd knows whether the function has something to learn
        with Watch(function, inputs) as watch, torch.set_grad_enabled(begin is not None):
            output = function(*inputs)
        refuse_changes(function, watch, output)
        ctx.parameters = watch.of("parameter")
        save_inputs(ctx, inputs)
        if begin is not None:
            learns, output = output.requires_grad, output.detach()
            if not learns:
                ctx.mark_non_differentiable(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        to_all = fills_all_grads(ctx)
        # New leaves: the graph of the second forward ends here
        leaves = [
            x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
            for x in saved_inputs(ctx)
        ]
        with torch.enable_grad(), ctx.surroundings.again():
            output = ctx.function(*leaves)
        asked = None if to_all else [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
        if output.requires_grad and asked != []:  # fills .grad, of leaves and of parameters
            torch.autograd.backward(output, grad_output, inputs=asked)
        return None, None, None, *(x.grad if isinstance(x, Tensor) else None for x in leaves)


class Surroundings:
    """What the first forward ran in: the random generators' states, and autocast or not."""

    def __init__(
        self, function: Function, inputs: tuple[Any, ...], keep_random_state: bool = True
    ) -> None:
        tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
        tensors += function.parameters() if isinstance(function, nn.Module) else ()
        devices = {x.device for x in tensors}
        self.modes = _get_current_function_mode_stack()  # such as our Autocast
        self.autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted({"cpu", *(device.type for device in devices)})
            if torch.amp.is_autocast_available(kind)
        ]
        self.random = torch.get_rng_state() if keep_random_state else None
        self.random_cuda = {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same inside; outside goes on as if nothing had happened."""
        with ExitStack() as stack:
            for mode in self.modes:
                if mode not in _get_current_function_mode_stack():
                    stack.enter_context(mode)
            for autocast in self.autocast:
                stack.enter_context(torch.autocast(*autocast))
            if self.random is not None:
                stack.enter_context(torch.random.fork_rng(devices=list(self.random_cuda)))
                torch.set_rng_state(self.random)
                for device, state in self.random_cuda.items():
                    torch.cuda.set_rng_state(state, device)
            yield


def save_inputs(ctx: Any, inputs: tuple[Any, ...]) -> None:
    """Store tensors where autograd watches over them, and the rest beside them."""
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.others = [None if isinstance(x, Tensor) else (x,) for x in inputs]


def saved_inputs(ctx: Any) -> list[Any]:
    """The inputs in their order, or an error if one, or a parameter, was changed meanwhile."""
    for what, parameter, count in ctx.parameters:
        if parameter._version != count:
            raise ValueError(
                f"{what} of {_name(ctx.function)} was changed after its checkpoint, so the second "
                "forward would be another function: call backward() before the optimizer's step()"
            )
    try:
        tensors = iter(ctx.saved_tensors)
    except RuntimeError as error:
        raise ValueError(
            f"an input of {_name(ctx.function)} was changed in place after its checkpoint, so the "
            f"second forward would start from other numbers: {_OUT_OF_PLACE}"
        ) from error
    return [next(tensors) if other is None else other[0] for other in ctx.others]


_OUT_OF_PLACE = "write y = x + 1 instead of x += 1, or clone() first"


class Watch:
    """Counts in-place changes of inputs, and of what modules own: of all that run in the block."""

    def __init__(self, function: Function, inputs: tuple[Any, ...]) -> None:
        self.seen: dict[int, tuple[str, Tensor, int]] = {}
        for i, x in enumerate(tree_leaves(inputs)):
            if isinstance(x, Tensor):
                self.add(f"input {i}", x)
        if isinstance(function, nn.Module):
            self.enter(function)

    def __enter__(self) -> Watch:
        self.hook = register_module_forward_pre_hook(self.enter)  # a closure may hold modules
        return self

    def __exit__(self, *exception: Any) -> None:
        self.hook.remove()

    def enter(self, module: nn.Module, inputs: Any = ()) -> None:
        for name, buffer in module.named_buffers():
            self.add(f"buffer {name}", buffer)
        for name, parameter in module.named_parameters():
            self.add(f"parameter {name}", parameter)

    def add(self, what: str, tensor: Tensor) -> None:
        self.seen.setdefault(id(tensor), (what, tensor, tensor._version))  # torch counts writes

    def of(self, kind: str) -> list[tuple[str, Tensor, int]]:
        return [row for row in self.seen.values() if row[0].startswith(kind)]


def refuse_changes(function: Function, watch: Watch, output: Any) -> None:
    """An error for what the second forward could not repeat: it would change things once more."""
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{_name(function)} returns a {type(output).__name__}, not one tensor: checkpoint a "
            "piece of the model with one result"
        )
    for what, tensor, count in watch.seen.values():
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


_NEWER_KIND = (
    "our checkpoint knows a plain backward() only; use torch's checkpoint(..., use_reentrant=False)"
)


def _name(function: Function) -> str:
    return getattr(function, "__name__", type(function).__name__)
