"""Activation checkpointing: keep a function's inputs, and compute the inside again when needed.

Autograd stores what backward will read, for every operator of the model, until backward comes by.
A checkpoint stores the inputs of a whole piece of the model instead. When backward reaches the
piece, it runs forward once more, with autograd watching, and goes on from there:

    x_BTC = checkpoint(block, x_BTC)        # instead of block(x_BTC)

The second forward must be the first one over again. So the random state and autocast are put back
to what they were; what a piece changes in place cannot be put back, and is refused.

Sources: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016,
https://arxiv.org/abs/1604.06174. The same in torch: ``torch.utils.checkpoint.checkpoint(...,
use_reentrant=True)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Function = Callable[..., Tensor]


def checkpoint(function: Function, *inputs: Any, keep_random_state: bool = True) -> Tensor:
    """``function(*inputs)``, of which only the inputs are stored until backward.

    Args:
        function: a module or a function of tensors, whose result is one tensor. Parameters that
            it uses get their gradients as always.
        keep_random_state: run the second forward with the random numbers of the first. Without,
            dropout drops other values in the second forward, and the gradients are wrong.

    Raises:
        ValueError: no input requires a gradient, the result is not one tensor, or ``function``
            changes an input or a buffer of the module in place.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)  # nothing would be stored anyway
    if not any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        raise ValueError(
            f"none of the {len(inputs)} inputs of {_name(function)} requires a gradient, so "
            "backward would never reach the checkpoint and its parameters would not learn: "
            "begin the checkpoint after the embedding"
        )
    return Checkpoint.apply(function, keep_random_state, *inputs)


class Checkpoint(torch.autograd.Function):
    """One node of the graph that stands for a whole piece of the model."""

    @staticmethod
    def forward(ctx: Any, function: Function, keep_random_state: bool, *inputs: Any) -> Tensor:
        ctx.function = function
        ctx.random_state = RandomState(inputs) if keep_random_state else None
        ctx.autocast = _same_autocast(inputs)
        ctx.is_tensor = [isinstance(x, Tensor) for x in inputs]
        ctx.others = [x for x in inputs if not isinstance(x, Tensor)]
        before = _versions(function, inputs)
        output = function(*inputs)  # a Function's forward runs without autograd: nothing is stored
        _refuse_changes(function, before, _versions(function, inputs))
        if not isinstance(output, Tensor):
            raise ValueError(
                f"{_name(function)} returns a {type(output).__name__}, not one tensor: checkpoint "
                "a piece of the model with one result"
            )
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _saved_inputs(ctx)
        # New leaves: the graph of the second forward ends here
        leaves = [
            x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
            for x in inputs
        ]
        replay = ctx.random_state.replay() if ctx.random_state else nullcontext()
        with torch.enable_grad(), replay, ctx.autocast():
            output = ctx.function(*leaves)
        torch.autograd.backward(output, grad_output)  # fills .grad of leaves and of parameters
        return None, None, *(x.grad if isinstance(x, Tensor) else None for x in leaves)


class RandomState:
    """Where the random generators stood, on the CPU and on the inputs' device."""

    def __init__(self, inputs: tuple[Any, ...]) -> None:
        devices = {x.device for x in inputs if isinstance(x, Tensor) and x.device.type == "cuda"}
        self.cpu = torch.get_rng_state()
        self.cuda = {device: torch.cuda.get_rng_state(device) for device in devices}

    @contextmanager
    def replay(self) -> Iterator[None]:
        """The same random numbers again inside; outside goes on as if nothing had happened."""
        with torch.random.fork_rng(devices=list(self.cuda)):
            torch.set_rng_state(self.cpu)
            for device, state in self.cuda.items():
                torch.cuda.set_rng_state(state, device)
            yield


def _same_autocast(inputs: tuple[Any, ...]) -> Callable[[], AbstractContextManager[None]]:
    """Backward mostly runs outside ``torch.autocast``: how to enter the same one there."""
    kind = next(x.device.type for x in inputs if isinstance(x, Tensor))
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled)


def _saved_inputs(ctx: Any) -> list[Any]:
    try:
        tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
    except RuntimeError as error:  # autograd's own watch over saved tensors
        raise ValueError(
            f"an input of {_name(ctx.function)} was changed in place after its checkpoint, so the "
            "second forward would start from other numbers: write y = x + 1 instead of x += 1, or "
            "clone() first"
        ) from error
    return [next(tensors) if is_tensor else next(others) for is_tensor in ctx.is_tensor]


def _versions(function: Function, inputs: tuple[Any, ...]) -> dict[str, int]:
    """How often each input and each buffer was written to: torch counts in-place changes."""
    watched = {f"input {i}": x for i, x in enumerate(inputs) if isinstance(x, Tensor)}
    if isinstance(function, nn.Module):
        watched |= {f"buffer {name}": buffer for name, buffer in function.named_buffers()}
    return {name: tensor._version for name, tensor in watched.items()}


def _refuse_changes(function: Function, before: dict[str, int], after: dict[str, int]) -> None:
    changed = [name for name, version in before.items() if after[name] != version]
    if not changed:
        return
    what, how = changed[0], "write y = x + 1 instead of x += 1, or clone() first"
    if what.startswith("buffer"):
        how = "leave that module outside the checkpoint, or call eval() on it"
    raise ValueError(
        f"{_name(function)} changes {what} in place, and would change it again in the second "
        f"forward: {how}"
    )


def _name(function: Function) -> str:
    return getattr(function, "__name__", type(function).__name__)
