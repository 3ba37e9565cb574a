"""The job of ``dlcourse.parallel.zero`` in real libraries: torch's two, and DeepSpeed's stages.

DeepSpeed is optional: ``installed()`` tells which of `LIBRARIES` can run here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from dlcourse.collectives.tcp_counters import wire_counters
from dlcourse.corpus import Corpus, sequences_per_rank
from dlcourse.models.gpt import GPT
from dlcourse.parallel.loop import mean_over_ranks, run_steps
from dlcourse.peers import deepspeed_engine
from dlcourse.peers.comparison import timed

STAGE_OF = {
    "ZeroRedundancyOptimizer": 1,
    "DeepSpeed 1": 1,
    "DeepSpeed 2": 2,
    "DeepSpeed 3": 3,
    "FSDP2": 3,
}
LIBRARIES = tuple(STAGE_OF)


def installed() -> list[str]:
    """Those of `LIBRARIES` that this environment has."""
    return [
        name
        for name in LIBRARIES
        if not name.startswith("DeepSpeed") or deepspeed_engine.is_installed()
    ]


def shard_with_fsdp2(model: GPT, *, lr: float = 1e-3) -> tuple[nn.Module, AdamW]:
    """Each block is a unit, the rest of the model another one: as our ZeRO3 does it."""
    device = next(model.parameters()).device.type
    assert dist.group.WORLD is not None
    mesh = DeviceMesh.from_group(dist.group.WORLD, device)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, AdamW(model.parameters(), lr=lr)


def shard_with_torch_zero1(
    model: nn.Module, *, lr: float = 1e-3
) -> tuple[nn.Module, ZeroRedundancyOptimizer]:
    """DDP, with an optimizer that gives each rank whole parameters, about as many bytes each."""
    model = DistributedDataParallel(model)
    return model, ZeroRedundancyOptimizer(model.parameters(), AdamW, lr=lr)


def shard_with_deepspeed(
    model: nn.Module, stage: int, *, micro_batch: int, lr: float = 1e-3
) -> Any:
    """A DeepSpeed engine, with every threshold off that would leave something undivided."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "zero_optimization": {
            "stage": stage,
            # Of 1,000,000 elements and 100,000: small parameters would never be divided
            "stage3_model_persistence_threshold": 0,
            "stage3_param_persistence_threshold": 0,
            "reduce_bucket_size": 250_000,
            "allgather_bucket_size": 250_000,
            "stage3_prefetch_bucket_size": 250_000,
            # Of a billion each: a small model would stay gathered as a whole
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
        },
    }
    return deepspeed_engine.engine(model, config, lr=lr)


def _check(library: str) -> None:
    if library not in installed():
        raise ValueError(
            f"library={library!r} cannot run here: give one of {', '.join(installed())}"
            + (", or install the extra 'peers'" if library in LIBRARIES else "")
        )


def training_step(
    model: GPT, library: str, *, micro_batch: int, lr: float = 1e-3
) -> Callable[[Tensor, Tensor], Tensor]:
    """Put ``model`` into one of `LIBRARIES`, with AdamW.

    Returns:
        ``step(tokens_BT, targets_BT)``: one whole training step on this rank's sequences, as many
        as ``micro_batch``; gives their loss, shape ().

    Raises:
        ValueError: the library is unknown or not installed.
    """
    _check(library)
    if library.startswith("DeepSpeed"):
        engine = shard_with_deepspeed(model, STAGE_OF[library], micro_batch=micro_batch, lr=lr)

        def deepspeed_step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
            loss = engine(tokens_BT, targets_BT)
            engine.backward(loss)
            engine.step()
            return loss.detach()

        return deepspeed_step
    shard = shard_with_fsdp2 if library == "FSDP2" else shard_with_torch_zero1
    sharded, optimizer = shard(model, lr=lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        loss = sharded(tokens_BT, targets_BT)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def train(
    model: GPT,
    corpus: Corpus,
    library: str,
    *,
    steps: int,
    batch_size: int = 16,
    block: int = 128,
    lr: float = 1e-3,
) -> dict[str, list]:
    """Train ``model`` with one of `LIBRARIES`. Arguments as in ``dlcourse.parallel.zero.train``.

    Returns:
        Plain lists with one entry per step. ``losses``: over the whole batch. ``step_seconds``:
        wall time in this rank. ``bytes``: what this process has sent over TCP, where the system
        counts that, else None.

    Raises:
        ValueError: the library is unknown or not installed, or ranks do not divide the batch.
    """
    _check(library)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    micro_batch = sequences_per_rank(batch_size, world_size=world_size)
    device = next(model.parameters()).device
    take_step = training_step(model, library, micro_batch=micro_batch, lr=lr)
    seconds: list[float] = []
    num_bytes: list[int | None] = []

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        before = wire_counters()
        loss = take_step(tokens_BT, targets_BT)
        loss.item()
        after = wire_counters()
        num_bytes.append(after[0] - before[0] if before and after else None)
        return loss

    losses = run_steps(
        timed(step, seconds),
        corpus,
        steps=steps,
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
        block=block,
        device=device,
    )
    losses = mean_over_ranks(losses, device=device)
    return {"losses": losses, "step_seconds": seconds, "bytes": num_bytes}
