"""Backward passes written by hand give first derivatives: a graph of them is refused, not left out.

torch's ``once_differentiable`` speaks up only where the incoming gradient has a graph. That of a
loss has none, and what depends on the gradient (a gradient penalty, say) would lose its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def first_derivatives_of(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let the backward of ``name`` raise a ``RuntimeError`` under ``create_graph=True``."""

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        once = once_differentiable(backward)

        @functools.wraps(backward)
        def run(ctx: Any, *gradients: Any) -> Any:
            if torch.is_grad_enabled():  # in backward: somebody wants a graph of it
                raise RuntimeError(
                    f"create_graph=True through {name}: it has no second derivatives, so a "
                    "gradient penalty would be dropped; compute that part in one process"
                )
            return once(ctx, *gradients)

        return run

    return decorate
