"""A model cut over devices by layers: each device has some layers, and the activations travel.

    device 0: layers 0-32    -- (B, T, C) -->    device 1: layers 33-65    -- (B, T, C) -->    ...

Backward goes the same way back, with gradients of the same shape. Nothing is copied, nothing is
averaged, so the result is that of one process, bit for bit. But a device waits for the one before
it: one works, all others wait. It is a pipeline of one micro-batch.

Two ways: `LayersOverDevices` in one process, for devices that it can reach (two GPUs and the CPU);
`LayersOverRanks` with a rank for each device, where a machine has only one.

Shape suffixes as in ``dlcourse.models.gpt``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.panel.units import human_bytes
from dlcourse.parallel.schedules import Action
from dlcourse.parallel.stages import Stage
from dlcourse.training.activations import Shape, layer_bytes

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


class LayersOverDevices(nn.Module):
    """The whole model in one process, its layers on several devices.

    Args:
        model: is taken apart; its parameters move.
        sizes: layers of each device.
        devices: as many, such as ``["cuda:0", "cuda:1", "cpu"]``.
    """

    def __init__(self, model: GPT, sizes: Sequence[int], devices: Sequence[str]) -> None:
        super().__init__()
        if len(sizes) != len(devices):
            raise ValueError(f"{len(sizes)} sizes for {len(devices)} devices: give one each")
        ranges = layer_ranges(model.config.n_layer, sizes)
        self.devices = [torch.device(device) for device in devices]
        self.stages = nn.ModuleList(
            Stage(model, layers).to(device)
            for layers, device in zip(ranges, self.devices, strict=True)
        )

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """As the model's own forward; the result is on the last device."""
        x = tokens_BT
        for stage, device in zip(self.stages, self.devices, strict=True):
            x = x.to(device)  # autograd brings the gradient back the same way
            last = stage.is_last and targets_BT is not None
            x = stage(x, targets_BT.to(device)) if last else stage(x)
        return x


class LayersOverRanks(nn.Module):
    """This rank's layers. ``parameters()`` are theirs alone, so the optimizer's state is, too.

    Args:
        model: the same weights in every rank; layers of other ranks are not kept.
        sizes: layers of each rank of the default group.
    """

    def __init__(self, model: GPT, sizes: Sequence[int]) -> None:
        super().__init__()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        if len(sizes) != self.world_size:
            raise ValueError(f"{len(sizes)} sizes for {self.world_size} ranks: give one each")
        self.stage = Stage(model, layer_ranges(model.config.n_layer, sizes)[self.rank])
        self.spans: list[tuple[float, float, Action]] = []  # work of the last step, in seconds

    def step(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Forward and backward of a batch; adds to every ``.grad``.

        Returns:
            The mean loss in the last rank, 0 in the others.
        """
        before, after = self.rank - 1, self.rank + 1
        x, self.spans = tokens_BT, []
        if not self.stage.is_first:
            weight = next(self.parameters())
            x = weight.new_empty((*tokens_BT.shape, self.stage.config.n_embd))
            dist.recv(x, before)
            x.requires_grad_()  # a leaf: this rank's graph ends here
        start = time.perf_counter()
        y = self.stage(x, targets_BT) if self.stage.is_last else self.stage(x)
        self.spans.append((start, time.perf_counter(), Action("F", 0, 0)))
        grad = None
        if not self.stage.is_last:
            dist.send(y.detach(), after)
            grad = torch.empty_like(y)
            dist.recv(grad, after)
        start = time.perf_counter()
        y.backward(grad)
        self.spans.append((start, time.perf_counter(), Action("BW", 0, 0)))
        if not self.stage.is_first:
            dist.send(x.grad, before)
        return y.detach() if self.stage.is_last else y.new_zeros(())


def device_needs(
    config: GPTConfig, sizes: Sequence[int], *, sequences: int, block: int
) -> list[Needs]:
    """Bytes that each device needs for training in float32 with AdamW.

    Parameters, gradients and state are exact. "activations" is the peak of what autograd keeps and
    of messages, within 5% of what the ledger says.
    """
    C, V = config.n_embd, config.vocab_size
    shape = Shape.of(config, sequences=sequences, block=block)
    stream, logits = 4 * shape.tokens * C, 4 * shape.tokens * V
    needs = []
    for layers in layer_ranges(config.n_layer, sizes):
        numbers, tensors = len(layers) * (12 * C * C + 10 * C), 13 * len(layers)
        stored = len(layers) * layer_bytes(shape)
        peak = stored + stream + (stream + 4 * stream + 16 * C * C)  # gradients in an MLP
        if layers.start == 0:
            numbers, tensors = numbers + (V + config.block_size) * C, tensors + 2
        if layers.stop == config.n_layer:
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
