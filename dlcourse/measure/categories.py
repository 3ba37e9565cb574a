"""The categories that a rank's memory is counted in, in the order of records and figures.

parameters       storages behind an `nn.Parameter`, or a tensor that an optimizer updates
gradients        storages behind the `.grad` of one of those
optimizer_state  tensors in `optimizer.state` (moments, and the step counters)
activations      made by an operation that autograd tracks, or during a backward pass
communication    handed to a collective, and none of the above (a gradient bucket, a
                 gathered weight). What the forward pass made stays an activation.
other            the rest: the batch, masks, buffers, what an optimizer step needs for a moment
"""

from __future__ import annotations

CATEGORIES = (
    "parameters",
    "gradients",
    "optimizer_state",
    "activations",
    "communication",
    "other",
)
PARAMETERS, GRADIENTS, OPTIMIZER_STATE, ACTIVATIONS, COMMUNICATION, OTHER = range(6)


def by_name(totals: list[int]) -> dict[str, int]:
    """Bytes in the order of `CATEGORIES` as {category: bytes}."""
    return dict(zip(CATEGORIES, totals, strict=True))
