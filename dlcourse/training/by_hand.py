"""One training job by hand: what a DeepSpeed JSON switches on, in a few lines of this course each.

    model, optimizer = prepare(GPT(), bf16=True, checkpoint=True, zero3=True, offload=True)
    loss = take_step(model, optimizer, (tokens_BT, targets_BT), accumulate=2, clip=1.0)

Each saving is a function of its own (``SAVINGS``), so that its lines can be read, counted and
changed; the concepts behind them are in the modules of lessons 06 and 09 to 12. It runs on any
device that torch has: "cpu", "cuda", and "mps" in one process, where no collective is needed.

The order in ``prepare`` matters: checkpoints go around the blocks first, then the parameters get
their type, then ZeRO makes a flat row of each block, and the optimizer comes last, to update what
is left for this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.models.gpt import GPT
from dlcourse.models.targets import check_equal_counts
from dlcourse.parallel.part_state import PARTS
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.training.accumulation import split
from dlcourse.training.checkpointing.segments import checkpoint_blocks, early_stop
from dlcourse.training.mixed_precision.master_adamw import MasterAdamW
from dlcourse.training.mixed_precision.support import check_precision
from dlcourse.training.sharding_offload.local_host import master_of
from dlcourse.training.sharding_offload.zero3_offload import OffloadedZeRO3


def in_parts(model: nn.Module, batch: tuple[Tensor, Tensor], accumulate: int) -> Tensor:
    """Accumulation: the gradient of the batch in ``.grad``; returns this rank's mean loss."""
    parts = split(*batch, accumulate=accumulate)
    total = torch.zeros((), device=batch[0].device)
    for tokens_MT, targets_MT in parts:
        loss = model(tokens_MT, targets_MT) / len(parts)
        loss.backward()
        total += loss.detach()
    return total


def in_16_bits(gpt: GPT) -> GPT:
    """Precision: parameters and gradients in bfloat16; the optimizer keeps masters in float32."""
    check_precision(torch.bfloat16, next(gpt.parameters()).device)
    return gpt.to(torch.bfloat16)


def with_checkpoints(gpt: GPT) -> GPT:
    """Activation checkpointing: of each block only its input is kept for backward."""
    return checkpoint_blocks(gpt, [1] * len(gpt.blocks), early_stop)


def in_shards(gpt: GPT) -> ZeRO3:
    """ZeRO-3: each rank keeps its part of parameters, gradients and optimizer state."""
    return ZeRO3(gpt)


def in_shards_on_host(gpt: GPT) -> ZeRO3:
    """Parameter offload: shards in the host's memory, copied to the device to be gathered."""
    return OffloadedZeRO3(gpt)


class HostAdamW:
    """Offload: AdamW whose state and float32 masters live in the host's memory.

    Attributes:
        moved_bytes: gradients that went to the host and parameters that came back, so far. Where
            the device's memory is the host's (a CPU, a Mac's unified memory), they still count:
            it is what the method moves. Shards of ``OffloadedZeRO3`` do not move here: it counts.

    The masters are the weights: what is loaded into the model later, the next step overwrites.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float = 1e-3) -> None:
        self.parameters = list(parameters)
        self.masters = [nn.Parameter(master_of(p).cpu()) for p in self.parameters]
        self.adam = torch.optim.AdamW(self.masters, lr=lr)
        self.moved_bytes = 0

    def zero_grad(self) -> None:
        for p in [*self.parameters, *self.masters]:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for p, master in zip(self.parameters, self.masters, strict=True):
            master.grad = None if p.grad is None else p.grad.to("cpu", master.dtype)
            if p.grad is not None:
                self.moved_bytes += p.grad.nbytes
        self.adam.step()
        for p, master in zip(self.parameters, self.masters, strict=True):
            p.copy_(master)
            self.moved_bytes += p.nbytes


# What each saving adds to the loop; the lesson counts their lines
SAVINGS: dict[str, Callable] = {
    "accumulate": in_parts,
    "bf16": in_16_bits,
    "checkpoint": with_checkpoints,
    "zero3": in_shards,
    "offload": HostAdamW,
    "offload_param": in_shards_on_host,
}


def prepare(
    gpt: GPT,
    *,
    bf16: bool = False,
    checkpoint: bool = False,
    zero3: bool = False,
    offload: bool = False,
    offload_param: bool = False,
    lr: float = 1e-3,
) -> tuple[nn.Module, torch.optim.Optimizer | HostAdamW]:
    """The model with its savings, and the optimizer for what this rank has to update.

    Raises:
        ValueError: the device does not compute in bfloat16; or ``offload_param`` alone.
    """
    if offload_param and not (zero3 and offload):
        raise ValueError(
            f"offload_param=True with zero3={zero3} and offload={offload}: ZeRO-3's shards live in "
            "the host's memory then, and the optimizer updates them there; give zero3=True and "
            "offload=True, or leave offload_param out"
        )
    if checkpoint:
        gpt = with_checkpoints(gpt)
    if bf16:
        gpt = in_16_bits(gpt)
    shard = in_shards_on_host if offload_param else in_shards
    model: nn.Module = shard(gpt) if zero3 else gpt
    parameters = model.shards if isinstance(model, ZeRO3) else list(model.parameters())
    if offload:
        return model, HostAdamW(parameters, lr=lr)
    return model, (MasterAdamW if bf16 else torch.optim.AdamW)(parameters, lr=lr)


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | HostAdamW,
    batch: tuple[Tensor, Tensor],
    *,
    accumulate: int = 1,
    clip: float = 0.0,
) -> Tensor:
    """One step on this rank's sequences.

    Args:
        batch: tokens and targets, each (B, T), of this rank.
        accumulate: micro-batches.
        clip: largest norm of the whole gradient; 0 is without. DeepSpeed 0.19's default is 1.0.

    Returns:
        This rank's mean loss, a number without a graph.

    Raises:
        ValueError: ``accumulate`` does not divide the sequences; micro-batches with different
            numbers of targets; or ranks hold parts of matrices or other experts, which have no
            mean.
    """
    check_equal_counts([targets for _, targets in split(*batch, accumulate=accumulate)])
    if any(hasattr(part, "batch_group") for part in model.modules()):
        raise ValueError(
            "model's experts are divided over ranks, which hold other ones: take "
            "dlcourse.training.accumulation.train with an ExpertDataParallel"
        )
    optimizer.zero_grad()
    loss = in_parts(model, batch, accumulate)
    zero = model if isinstance(model, ZeRO3) else None
    parameters: list[Tensor] = [*(zero.shards if zero else model.parameters())]
    if any(parameter in PARTS for parameter in parameters):
        raise ValueError("model is cut by tensor parallelism: ranks hold other parts; take ZeRO3")
    if zero:
        zero.sync_gradients()
    elif dist.is_initialized() and dist.get_world_size() > 1:
        average_gradients(parameters)
    if clip and zero:
        zero.clip_grad_norm_(clip)  # a rank has a part of the gradient, maybe in the host's memory
    elif clip:
        clip_norm(parameters, clip)
    optimizer.step()
    if zero:
        zero.sync_parameters()
    return loss


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """The mean over the ranks, one all-reduce for all of them together.

    What no rank has used keeps no gradient; with the others goes a number for who has.
    """
    some = [p for p in parameters if p.grad is not None or p.requires_grad]
    used = some[0].new_tensor([float(p.grad is not None) for p in some])
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
    row = torch.cat([used, *(grad.flatten() for grad in grads)]) / dist.get_world_size()
    dist.all_reduce(row)
    users, *means = row.split([len(some), *(grad.numel() for grad in grads)])
    for p, share, grad, mean in zip(some, users.tolist(), grads, means, strict=True):
        p.grad = grad.copy_(mean.view_as(grad)) if share else None


@torch.no_grad()
def clip_norm(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale the gradient down to a norm of ``limit``; returns the norm before."""
    grads = [p.grad for p in parameters if p.grad is not None]
    square = torch.stack([grad.float().square().sum() for grad in grads]).sum()
    norm = square.sqrt()
    for grad in grads:
        grad.mul_((limit / (norm + 1e-6)).clamp(max=1.0).to(grad.dtype))
    return norm
