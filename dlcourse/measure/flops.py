"""Floating-point operations of one dispatched operator.

torch keeps the formulas in `torch.utils.flop_counter`. Two things are added here:

- CPU attention. The default SDPA on CPU runs `_scaled_dot_product_flash_attention_for_cpu`,
  for which torch 2.13 has no formula, so that its own counter silently leaves attention out.
- A memory of shapes. A training step runs the same operators on the same shapes again and
  again, and a formula in Python costs more than a dictionary look-up.

The formulas of attention are in ``dlcourse.formulas.flops``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from dlcourse.formulas.flops import attention_backward_flops, attention_flops

aten = torch.ops.aten
_MAX_SHAPES = 4096


def _cpu_attention(args: tuple, kwargs: dict, out: Any) -> int:
    return attention_flops(*(t.shape for t in args[:3]))


def _cpu_attention_backward(args: tuple, kwargs: dict, out: Any) -> int:
    return attention_backward_flops(*(t.shape for t in args[1:4]))


def _mm(args: tuple, kwargs: dict, out: Any) -> int:
    n, k = args[0].shape
    return 2 * n * k * args[1].shape[1]


def _addmm(args: tuple, kwargs: dict, out: Any) -> int:
    n, k = args[1].shape
    return 2 * n * k * args[2].shape[1]


# Most of a model's FLOPs, and quicker without a look-up.
_PRODUCTS = {aten.mm.default: _mm, aten.addmm.default: _addmm}
_EXTRA: dict[Any, Callable[[tuple, dict, Any], int]] = {}
for _name, _formula in (
    ("_scaled_dot_product_flash_attention_for_cpu", _cpu_attention),
    ("_scaled_dot_product_flash_attention_for_cpu_backward", _cpu_attention_backward),
):
    if hasattr(aten, _name):
        _EXTRA[getattr(aten, _name)] = _formula


def flops_of(func: Any) -> Callable[[tuple, dict, Any], int] | None:
    """The counter for an operator, called with (args, kwargs, result); None: counts nothing."""
    if func in _PRODUCTS:
        return _PRODUCTS[func]
    packet = getattr(func, "overloadpacket", None)
    # torch's own formula where there is one: a later version may bring it
    if packet in flop_registry:
        formula = _of_torch(flop_registry[packet])
    elif packet in _EXTRA:
        formula = _EXTRA[packet]
    else:
        return None
    seen: dict[Any, int] = {}

    def count(args: tuple, kwargs: dict, out: Any) -> int:
        key = None
        try:
            key = (*map(_hashable, args), *((name, _hashable(a)) for name, a in kwargs.items()))
            known = seen.get(key)
        except TypeError:  # unhashable argument: ask the formula each time
            known = None
        if known is not None:
            return known
        n = formula(args, kwargs, out)
        if key is not None and len(seen) < _MAX_SHAPES:
            seen[key] = n
        return n

    return count


def _of_torch(formula: Callable[..., int]) -> Callable[[tuple, dict, Any], int]:
    return lambda args, kwargs, out: formula(*args, **kwargs, out_val=out)


def _hashable(a: Any) -> Any:
    """What stands for an argument: its shape for a tensor, whose memory is not kept."""
    if isinstance(a, torch.Tensor):
        return a.shape
    return tuple(map(_hashable, a)) if isinstance(a, list) else a
