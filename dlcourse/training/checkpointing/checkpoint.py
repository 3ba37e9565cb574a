"""Activation checkpointing: keep a function's inputs, and compute the inside again when needed.

Autograd stores what backward will read, for every operator of the model, until backward comes by.
A checkpoint stores the inputs of a whole piece of the model instead. When backward reaches the
piece, it runs forward once more, with autograd watching, and goes on from there:

    x_BTC = checkpoint(block, x_BTC)        # instead of block(x_BTC)

The second forward must be the first one over again. So the random state and autocast (torch's, and
that of ``autocast.py``) are put back to what they were; what a piece changes in place cannot be put
back, and is refused (``refusals.py``).

Sources: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016,
https://arxiv.org/abs/1604.06174. The same in torch: ``torch.utils.checkpoint.checkpoint(...,
use_reentrant=True)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import tree_leaves

from dlcourse.training.checkpointing.refusals import (
    Function,
    Versions,
    fills_all_grads,
    inputs_alone,
    refuse_changes,
    refuse_shards,
    save_inputs,
    saved_inputs,
)


def checkpoint(function: Function, *inputs: Any, keep_random_state: bool = True) -> Tensor:
    """``function(*inputs)``, of which only the inputs are stored until backward.

    Args:
        function: a module or a function of tensors, whose result is one tensor. Parameters that
            it uses get their gradients as always.
        keep_random_state: run the second forward with the random numbers of the first. Without,
            dropout drops other values in the second forward, and the gradients are wrong.

    Raises:
        ValueError: ``function`` is a ZeRO model; the result is not one tensor, or ``function``
            changes an input, or a parameter or buffer of a module in place; in backward, if one of
            these, or train() and eval(), was changed meanwhile. (Another tensor put in place of
            ``parameter.data`` is not seen.)
        RuntimeError: in backward, if that is asked for a graph of its own (``create_graph``), or
            if ``function`` shares a tensor with others that is not an input of its own.

    ``torch.autograd.grad`` and ``backward(inputs=...)`` reach the inputs alone, not parameters.
    """
    refuse_shards(function)
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
        with Versions(function, inputs) as versions, torch.set_grad_enabled(begin is not None):
            output = function(*inputs)
        refuse_changes(function, versions, output)
        ctx.seen, ctx.parameters = versions.without_inputs(), versions.of("parameter")
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
            with inputs_alone(ctx.function):
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
