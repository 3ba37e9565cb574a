"""Which layers a device gets, and what it needs for them: before anything is built. Needs no torch.

Shape letters as in ``activations.py``: V vocabulary, C width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from dlcourse.formulas.activations import Shape, layer_bytes
from dlcourse.words.units import human_bytes

Needs = dict[str, int]  # category -> bytes


def layer_ranges(n_layer: int, sizes: Sequence[int]) -> list[range]:
    """The layers of each device: ``sizes`` [33, 33, 34] gives layers 0-32, 33-65 and 66-99.

    Raises:
        ValueError: a device without layers, or sizes that do not add up to ``n_layer``.
    """
    if not sizes or any(size < 1 for size in sizes) or sum(sizes) != n_layer:
        raise ValueError(
            f"sizes={list(sizes)} adds up to {sum(sizes)} layers and the model has {n_layer}: give "
            f"each device 1 or more, {n_layer} together"
        )
    return [range(a, b) for a, b in pairwise(accumulate(sizes, initial=0))]


def check_devices(num_ranks: int) -> None:
    """Refuse to divide layers over a single device.

    Raises:
        ValueError: fewer than two ranks.
    """
    if num_ranks < 2:
        raise ValueError(f"num_ranks={num_ranks}: layers cannot be divided, give 2 or more")


def device_needs(
    shape: Shape, sizes: Sequence[int], *, positions: int | None = None
) -> list[Needs]:
    """Bytes that each device needs for training in float32 with AdamW.

    Parameters, gradients and state are exact. "activations" is the peak of what autograd keeps and
    of messages, within 5% of what the ledger says.

    Args:
        positions: rows of the position embedding, ``shape.block`` by default.
    """
    C, V = shape.n_embd, shape.vocab_size
    positions = shape.block if positions is None else positions
    stream, logits = 4 * shape.tokens * C, 4 * shape.tokens * V
    needs = []
    for layers in layer_ranges(shape.n_layer, sizes):
        numbers, tensors = len(layers) * (12 * C * C + 10 * C), 13 * len(layers)
        stored = len(layers) * layer_bytes(shape)
        peak = stored + stream + (stream + 4 * stream + 16 * C * C)  # gradients in an MLP
        if layers.start == 0:
            numbers, tensors = numbers + (V + positions) * C, tensors + 2
        if layers.stop == shape.n_layer:
            numbers, tensors = numbers + (V + 2) * C, tensors + 3
            norm = 2 * stream + 8 * shape.tokens
            peak = max(stored + norm + 3 * logits, peak - stream)
        needs.append(
            {
                "parameters": 4 * numbers,
                "gradients": 4 * numbers,
                "optimizer_state": 8 * numbers + 4 * tensors,  # and a step counter for each
                "activations": peak,
            }
        )
    return needs


def check_limits(needs: Sequence[Mapping[str, int]], limits: Sequence[int]) -> None:
    """Refuse a placement that does not fit, before anything is built.

    Args:
        limits: bytes of each device.

    Raises:
        ValueError: the first device with too little memory, what it lacks and what to change.
    """
    for device, (need, limit) in enumerate(zip(needs, limits, strict=True)):
        if sum(need.values()) > limit:
            largest = max(need, key=need.get)
            raise ValueError(
                f"device {device} has {human_bytes(limit)} and its layers need "
                f"{human_bytes(sum(need.values()))}, {human_bytes(need[largest])} of it for "
                f"{largest}: give it fewer layers, "
                + ("take fewer sequences" if largest == "activations" else "offload its optimizer")
                + ", or raise its limit"
            )
