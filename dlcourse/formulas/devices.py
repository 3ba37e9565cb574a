"""Which layers a device gets, and what it needs for them: before anything is built.

Shape letters as in ``sizes.py``. Source: the formulas of ``parameters.py``, ``states.py`` and
``activations.py``, for some of the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise

from dlcourse.formulas.activations import (
    layer_bytes,
    loss_bytes,
    mlp_backward_bytes,
    stream_bytes,
)
from dlcourse.formulas.parameters import LAYER_TENSORS, layer_parameters
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.formulas.states import STEP_COUNTER_BYTES, state_bytes
from dlcourse.words.strings import both, t
from dlcourse.words.units import human_bytes

Needs = dict[str, float]  # category -> bytes


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
    config: GPTConfig, sizes: Sequence[int], *, micro_batch: int, block: int
) -> list[Needs]:
    """Bytes that each device needs for training in float32 with AdamW.

    Parameters, gradients and state are exact. "activations" is the peak of what autograd keeps and
    of messages, within 5% of what the ledger says. It is not there at the same moment as the
    gradients: see ``at_peak``.

    Args:
        sizes: layers of each device.
        micro_batch: sequences of a step, of ``block`` tokens each.
    """
    batch = dict(micro_batch=micro_batch, block=block)
    C, V, stream = config.n_embd, config.vocab_size, stream_bytes(config, **batch)
    needs: list[Needs] = []
    for layers in layer_ranges(config.n_layer, sizes):
        numbers, tensors = len(layers) * layer_parameters(config), len(layers) * LAYER_TENSORS
        stored = len(layers) * layer_bytes(config, micro_batch=micro_batch, block=block)
        peak = stored + stream + mlp_backward_bytes(config, **batch)
        if layers.start == 0:  # the embeddings of tokens and positions
            numbers, tensors = numbers + (V + config.block_size) * C, tensors + 2
        if layers.stop == config.n_layer:  # the last norm and the output layer
            numbers, tensors = numbers + (V + 2) * C, tensors + 3
            peak = max(stored + loss_bytes(config, **batch), peak - stream)
        states = state_bytes(numbers, precision="float32")
        states["optimizer_state"] += STEP_COUNTER_BYTES * tensors
        needs.append(states | {"activations": peak})
    return needs


def at_peak(need: Mapping[str, float]) -> Needs:
    """What is there at a device's highest moment: not all that it needs, for not all of it meets.

    Parameters and state stay. Activations are all there when backward begins, and gradients when it
    ends; between the two, one goes as the other comes. So the larger one counts, within 5%.
    """
    larger = max(("activations", "gradients"), key=lambda name: need[name])
    return {name: need[name] for name in ("parameters", "optimizer_state", larger)}


def check_limits(needs: Sequence[Mapping[str, float]], limits: Sequence[int]) -> None:
    """Refuse a placement that does not fit, before anything is built.

    Args:
        limits: bytes of each device.

    Raises:
        ValueError: the first device with too little memory, what it lacks and what to change.
    """
    for device, (need, limit) in enumerate(zip(map(at_peak, needs), limits, strict=True)):
        if sum(need.values()) > limit:
            raise ValueError(both(partial(_does_not_fit, device, need, limit)))


def _does_not_fit(device: int, need: Needs, limit: int) -> str:
    largest, size = max(need.items(), key=lambda item: item[1])
    change = "fewer" if largest == "activations" else "offload"
    return t(
        "sharding_offload.over",
        device=device,
        limit=human_bytes(limit),
        need=human_bytes(sum(need.values())),
        size=human_bytes(size),
        category=t(f"category.{largest}"),
        change=t(f"sharding_offload.over.{change}"),
    )
