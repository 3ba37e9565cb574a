"""Sizes of shards, and what cannot be cut. No torch here: the kernel asks before ranks start."""

from __future__ import annotations

import math


def equal_part(name: str, number: int, size: int, *, advice: str = "") -> int:
    """``number / size``, for example the heads of one rank.

    Raises:
        ValueError: ``size`` ranks cannot have equal parts; names both numbers.
    """
    if size < 1:
        raise ValueError(f"{size} ranks cannot share {name}={number}: give 1 rank or more")
    if number % size:
        advice = advice or f"give a multiple of {size}, or fewer ranks"
        raise ValueError(f"{name}={number} cannot be cut into {size} equal parts: {advice}")
    return number // size


def check_tensor_parallel(*, n_head: int, n_embd: int, size: int) -> None:
    """Raise a ``ValueError`` where a GPT of these sizes cannot be cut over ``size`` ranks.

    A head stays whole, so ``size`` must divide the heads; then it divides the width too, unless
    the heads themselves do not. The vocabulary is padded and may have any size.
    """
    equal_part(
        "n_head", n_head, size, advice=f"a head stays whole, so use a divisor of {n_head} ranks"
    )
    equal_part("n_embd", n_embd, size)


def check_expert_parallel(*, num_experts: int, size: int) -> None:
    """Raise a ``ValueError`` where ``size`` ranks cannot share an MoE layer's experts equally."""
    if size > num_experts:
        raise ValueError(
            f"{size} ranks cannot share num_experts={num_experts}: {size - num_experts} of them "
            f"would have none, so give at most {num_experts} ranks, or more experts"
        )
    equal_part("num_experts", num_experts, size)


def padded_size(number: int, size: int) -> int:
    """The next number that ``size`` ranks can share.

    Megatron pads the vocabulary to a multiple of ``128 * size``, since GPUs like such widths.
    """
    return -(-number // size) * size


def check_mesh(*, world_size: int, **sides: int) -> None:
    """Raise a ``ValueError`` where a mesh's sides do not multiply out to the number of ranks.

    sides: their sizes by name, as in ``check_mesh(data=2, tensor=4, world_size=8)``.
    """
    for name, size in sides.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name}={size!r} is not allowed: give a whole number of 1 or more")
    product = math.prod(sides.values())
    if product != world_size:
        raise ValueError(
            f"{' x '.join(sides)} = {' x '.join(map(str, sides.values()))} is {product} ranks, and "
            f"there are {world_size}: change a side, or make Ranks({product})"
        )
