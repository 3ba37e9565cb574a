"""Lesson 15: one training job under five strategies, all of them torch's own.

A strategy decides how training is spread over the ranks. None of them asks how the model is
built, so each takes a dense model and an MoE, and each must give one process's losses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from dlcourse.corpus import Corpus, sequences_per_rank
from dlcourse.models.tiny import TinyLM
from dlcourse.parallel.loop import mean_over_ranks, run_steps

STRATEGIES = ("alone", "data", "zero1", "zero3", "tensor")
WHOLE_BATCH = ("alone", "tensor")  # every rank sees all sequences; the others share them out


def spread(model: nn.Module, strategy: str, lr: float = 1e-2) -> tuple[nn.Module, Optimizer]:
    """The model and its optimizer, spread over all ranks by one of ``STRATEGIES``."""
    if strategy in ("data", "zero1"):
        model = DistributedDataParallel(model)
    if strategy == "zero1":  # each rank keeps the optimizer state of its part of the parameters
        return model, ZeroRedundancyOptimizer(model.parameters(), AdamW, lr=lr)
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    if strategy == "zero3":  # FSDP2: parameters, gradients and optimizer state in shards
        fully_shard(model, mesh=mesh)
    if strategy == "tensor":  # every MLP is cut: first matrix by columns, second by rows
        for layer in model.modules():
            if isinstance(layer, nn.Sequential):
                parallelize_module(layer, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return model, AdamW(model.parameters(), lr=lr)


def train(
    model: TinyLM,
    strategy: str,
    *,
    steps: int = 2,
    batch_size: int = 24,
    block: int = 32,
    device: torch.device | str = "cpu",
    spread: Callable[[nn.Module, str], tuple[nn.Module, Optimizer]] = spread,
) -> dict[str, list[float] | int]:
    """Train ``model`` on ``batch_size`` sequences a step over all ranks together.

    Args:
        model: the same in every rank; it is changed in place.
        spread: what takes the strategy's name and spreads the model; a lesson gives its own copy.

    Returns:
        ``losses`` of each step over the whole batch; bytes that this rank holds between steps:
        ``parameters`` and ``optimizer_state``.

    Raises:
        ValueError: an unknown strategy, or ranks that do not divide ``batch_size``.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is unknown: give one of {', '.join(STRATEGIES)}")
    sequences_per_rank(batch_size, world_size=world_size)
    place, places = (0, 1) if strategy in WHOLE_BATCH else (rank, world_size)
    trained, optimizer = spread(model.to(device), strategy)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = trained(tokens_BT, targets_BT)
        loss.backward()
        optimizer.step()
        return loss

    losses = run_steps(
        step,
        Corpus(limit=200_000),
        steps=steps,
        rank=place,
        world_size=places,
        micro_batch=batch_size // places,
        block=block,
        device=torch.device(device),
    )
    return {
        "losses": mean_over_ranks(losses, device=torch.device(device)),
        "parameters": sum(bytes_here(p) for p in trained.parameters()),
        "optimizer_state": optimizer_bytes(optimizer),
    }


def bytes_here(tensor: torch.Tensor) -> int:
    """Bytes of a tensor in this rank; of a sharded one, those of this rank's shard."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes


def optimizer_bytes(optimizer: Optimizer) -> int:
    """Bytes of all state that the optimizer keeps in this rank."""
    own = optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer
    return sum(
        bytes_here(value)
        for state in own.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
