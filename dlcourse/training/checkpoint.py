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

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import _get_current_function_mode_stack

Function = Callable[..., Tensor]


def checkpoint(function: Function, *inputs: Any, keep_random_state: bool = True) -> Tensor:
    """``function(*inputs)``, of which only the inputs are stored until backward.

    Args:
        function: a module or a function of tensors, whose result is one tensor. Parameters that
            it uses get their gradients as always.
        keep_random_state: run the second forward with the random numbers of the first. Without,
            dropout drops other values in the second forward, and the gradients are wrong.

    Raises:
        ValueError: the result is not one tensor, or ``function`` changes an input or a buffer of
            the module in place.
        RuntimeError: in backward, where it is asked for the gradients of some tensors only.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)  # nothing would be stored anyway
    reached = None
    if not any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        if isinstance(function, nn.Module) and all_frozen(function):
            return function(*inputs)  # autograd stores nothing
        # Else backward would never reach the checkpoint, and its parameters would not learn
        reached = torch.empty(0, requires_grad=True)
    return Checkpoint.apply(function, keep_random_state, reached, *inputs)


class Checkpoint(torch.autograd.Function):
    """One node of the graph that stands for a whole piece of the model."""

    @staticmethod
    def forward(
        ctx: Any, function: Function, keep_random_state: bool, reached: Tensor | None, *inputs: Any
    ) -> Tensor:
        ctx.function = function
        ctx.surroundings = Surroundings(inputs, keep_random_state)
        before = count_changes(function, inputs)
        output = function(*inputs)  # a Function's forward runs without autograd: nothing is stored
        refuse_changes(function, inputs, before, output)
        save_inputs(ctx, inputs)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        refuse_some_gradients(ctx.function)
        # New leaves: the graph of the second forward ends here
        leaves = [
            x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
            for x in saved_inputs(ctx)
        ]
        with torch.enable_grad(), ctx.surroundings.again():
            output = ctx.function(*leaves)
        if output.requires_grad:  # else all inside is frozen
            torch.autograd.backward(output, grad_output)  # fills .grad of leaves and parameters
        return None, None, None, *(x.grad if isinstance(x, Tensor) else None for x in leaves)


class Surroundings:
    """What the first forward ran in: the random generators' states, and autocast or not."""

    def __init__(self, inputs: tuple[Any, ...], keep_random_state: bool = True) -> None:
        devices = {x.device for x in inputs if isinstance(x, Tensor)}
        kind = next(iter(devices)).type
        self.modes = _get_current_function_mode_stack()  # such as our Autocast
        self.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        self.random = torch.get_rng_state() if keep_random_state else None
        self.random_cuda = {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same inside; outside goes on as if nothing had happened."""
        with ExitStack() as stack:
            for mode in self.modes:
                if mode not in _get_current_function_mode_stack():
                    stack.enter_context(mode)
            stack.enter_context(torch.autocast(*self.autocast))
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
    """The inputs in their order, or an error if one was changed in place meanwhile."""
    try:
        tensors = iter(ctx.saved_tensors)
    except RuntimeError as error:
        raise ValueError(
            f"an input of {_name(ctx.function)} was changed in place after its checkpoint, so the "
            f"second forward would start from other numbers: {_OUT_OF_PLACE}"
        ) from error
    return [next(tensors) if other is None else other[0] for other in ctx.others]


_OUT_OF_PLACE = "write y = x + 1 instead of x += 1, or clone() first"


def count_changes(function: Function, inputs: tuple[Any, ...]) -> dict[str, int]:
    """How often each input and each buffer was written to: torch counts in-place changes."""
    watched = {f"input {i}": x for i, x in enumerate(inputs) if isinstance(x, Tensor)}
    if isinstance(function, nn.Module):
        watched |= {f"buffer {name}": buffer for name, buffer in function.named_buffers()}
    return {name: tensor._version for name, tensor in watched.items()}


def refuse_changes(
    function: Function, inputs: tuple[Any, ...], before: dict[str, int], output: Any
) -> None:
    """An error for what the second forward could not repeat: it would change things once more."""
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{_name(function)} returns a {type(output).__name__}, not one tensor: checkpoint a "
            "piece of the model with one result"
        )
    after = count_changes(function, inputs)
    for what, count in before.items():
        if after[what] != count:
            buffer = "leave that module outside the checkpoint, or call eval() on it"
            raise ValueError(
                f"{_name(function)} changes {what} in place, and would change it again in the "
                f"second forward: {buffer if what.startswith('buffer') else _OUT_OF_PLACE}"
            )


def all_frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def refuse_some_gradients(function: Function) -> None:
    """An error for ``autograd.grad`` and ``backward(inputs=...)``.

    Backward adds to ``.grad`` of every parameter here, also of those that nobody has asked for.
    """
    if not torch.autograd._is_checkpoint_valid():
        raise RuntimeError(
            f"gradients of some tensors only were asked for (autograd.grad, or backward with "
            f"inputs=), through a checkpoint of {_name(function)}, which would add to .grad of all "
            "its parameters: call loss.backward(), or take torch's checkpoint with "
            "use_reentrant=False"
        )


def _name(function: Function) -> str:
    return getattr(function, "__name__", type(function).__name__)
