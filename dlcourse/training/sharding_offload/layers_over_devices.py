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
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.collectives.p2p import irecv, isend
from dlcourse.formulas.devices import layer_ranges
from dlcourse.models.gpt import GPT
from dlcourse.parallel.pipeline_checks import check_grad_enabled, check_stages
from dlcourse.parallel.pipeline_schedules import Action
from dlcourse.parallel.pipeline_stages import SomeLayers, Stage, is_tied


def check_parts(model: GPT, sizes: Sequence[int]) -> None:
    """Refuse what two devices would train each for itself, or what their parts do not compute."""
    if len(sizes) > 1 and is_tied(model):
        raise ValueError(
            "embedding and output layer are one matrix (tie_embeddings), and would be on two "
            "devices: untie them, or give one device"
        )
    check_stages(model, layer_ranges(model.config.n_layer, sizes))


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
        check_parts(model, sizes)
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
            if stage.is_last and targets_BT is not None:
                x = stage(x, targets_BT.to(device))
            else:
                x = stage(x)
        return x


class LayersOverRanks(SomeLayers):
    """This rank's layers. ``parameters()`` are theirs alone, so the optimizer's state is, too.

    Args:
        model: the same weights in every rank; layers of other ranks are not kept.
        sizes: layers of each rank of the default group.
    """

    def __init__(self, model: GPT, sizes: Sequence[int]) -> None:
        super().__init__()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.stage_group = None  # all ranks
        if len(sizes) != self.world_size:
            raise ValueError(f"{len(sizes)} sizes for {self.world_size} ranks: give one each")
        check_parts(model, sizes)
        self.stage = Stage(model, layer_ranges(model.config.n_layer, sizes)[self.rank])
        self.spans: list[tuple[float, float, Action]] = []  # work of the last step, in seconds

    def now(self) -> float:
        """Seconds, once the device has done all that it was given."""
        if next(self.parameters()).is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Forward and backward of a batch; adds to every ``.grad``.

        Returns:
            The mean loss in the last rank, 0 in the others.

        Raises:
            RuntimeError: in ``torch.no_grad()``.
        """
        check_grad_enabled()
        before, after = self.rank - 1, self.rank + 1
        x, self.spans = tokens_BT, []
        if not self.stage.is_first:
            weight, dtype = next(self.parameters()), self.stage.stream.dtype
            x = weight.new_empty((*tokens_BT.shape, self.stage.config.n_embd), dtype=dtype)
            irecv(x, before).wait()
            x.requires_grad_()  # a leaf: this rank's graph ends here
        start = self.now()
        y = self.stage(x, targets_BT) if self.stage.is_last else self.stage(x)
        self.spans.append((start, self.now(), Action("F", 0, 0)))
        grad = None
        if not self.stage.is_last:
            isend(y.detach(), after).wait()
            grad = torch.empty_like(y)
            irecv(grad, after).wait()
        start = self.now()
        if y.requires_grad:  # all of these layers may be frozen
            y.backward(grad)
        self.spans.append((start, self.now(), Action("BW", 0, 0)))
        if not self.stage.is_first:
            isend(x.grad, before).wait()
        return y.detach() if self.stage.is_last else y.new_zeros(())
