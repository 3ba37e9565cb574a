"""Targets that do not count, and how much each part of a batch counts for its mean loss.

A loss is a mean over targets. The mean of the means of two parts is the mean of the whole only
where both have the same number of targets. So each part is weighted by its number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IGNORED = -100  # a target that does not count: padding. The value that cross_entropy skips


def count(targets: Tensor) -> Tensor:
    """How many targets count: a number without dimensions; 8 bytes where the device has them."""
    exact = torch.float32 if targets.device.type == "mps" else torch.float64
    return (targets != IGNORED).sum().to(exact)


def shares(parts: Sequence[Tensor], total: Tensor | None = None) -> list[Tensor]:
    """What each part's mean loss counts for: its targets divided by those of all parts.

    Args:
        parts: the targets of each micro-batch.
        total: the targets to divide by, where there are more than these parts have.
    """
    counts = [count(part) for part in parts]
    total = torch.stack(counts).sum() if total is None else total
    return [number / total for number in counts]


def weighted(loss: Tensor, share: Tensor) -> Tensor:
    """``loss * share``; 0 where the share is 0 and the loss a mean of nothing, which is NaN."""
    return torch.where(share == 0, torch.zeros_like(loss), loss) * share.to(loss.dtype)
