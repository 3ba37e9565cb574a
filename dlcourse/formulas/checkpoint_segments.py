"""Where to put checkpoints: every layer, every k layers, sqrt(n), or the first few only.

A placement is a list of numbers: how many layers each checkpointed segment has, from the first
layer on. Layers that are left over keep what they compute, as always. For a model of 8 layers:

    []             no checkpoint                    [1] * 8    each layer by itself
    [4, 4]         every 4 layers                   [1, 1, 1]  the first three layers only
    [3, 3]         segments of 3; the last two layers keep everything

More segments store more inputs between them; longer ones come alive one at a time, but whole.
``dlcourse.training.checkpointing.segments`` puts a placement into a model.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, for the square root.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def every(n_layer: int, k: int) -> list[int]:
    """Segments of ``k`` layers; the last one may be shorter.

    Raises:
        ValueError: ``k`` is not between 1 and ``n_layer``.
    """
    if not 1 <= k <= n_layer:
        raise ValueError(f"k={k} layers in a segment: give 1 to {n_layer}, the number of layers")
    return [min(k, n_layer - start) for start in range(0, n_layer, k)]


def best_length(n_layer: int, *, layer: float, boundary: float) -> int:
    """The length of segments that needs least: n/k boundaries are stored, k layers come alive.

    n/k * boundary + k * layer is smallest at k = sqrt(n * boundary / layer): sqrt(n) layers, if a
    layer stores no more than its input.

    Args:
        layer: bytes that one layer stores for backward.
        boundary: bytes of its input.
    """
    return min(n_layer, max(1, round(math.sqrt(n_layer * boundary / layer))))


def check_segments(segments: Sequence[int], n_layer: int) -> None:
    """Refuse a placement that does not fit, before anything is built or computed."""
    for size in segments:
        if type(size) is not int or size < 1:
            raise ValueError(
                f"segments={list(segments)} has a segment of {size!r} layers: give whole numbers "
                "of 1 or more"
            )
    if sum(segments) > n_layer:
        raise ValueError(
            f"segments={list(segments)} adds up to {sum(segments)} layers of a model with "
            f"{n_layer}: give {n_layer} or fewer"
        )
