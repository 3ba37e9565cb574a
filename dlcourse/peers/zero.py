"""The job of ``dlcourse.parallel.zero`` in real libraries: torch's two, and DeepSpeed's stages.

DeepSpeed is optional: ``installed()`` tells which of `LIBRARIES` can run here.
"""

from __future__ import annotations

import os
import time
import warnings
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from dlcourse.collectives.wire import wire_counters
from dlcourse.measure import mark_step
from dlcourse.training.corpus import Corpus, sequences_per_rank

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
        name for name in LIBRARIES if not name.startswith("DeepSpeed") or find_spec("deepspeed")
    ]


def shard_with_fsdp2(model: nn.Module, *, lr: float = 1e-3) -> tuple[nn.Module, AdamW]:
    """Each block is a unit, the rest of the model another one: as our ZeRO3 does it."""
    device = next(model.parameters()).device.type
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


def shard_with_deepspeed(model: nn.Module, stage: int, *, micro_batch: int, lr: float = 1e-3):
    """A DeepSpeed engine, with every threshold off that would leave something undivided."""
    os.environ.setdefault("DS_ACCELERATOR", next(model.parameters()).device.type)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it builds one: a minute
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,  # of 1.0: another training than everybody else's
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
        "steps_per_print": 10**9,
    }
    # DeepSpeed calls collectives by the names they had before torch 2.13
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    optimizer = AdamW(model.parameters(), lr=lr)
    # Stage 3 writes the numbers of every parameter into a message that it then does not print:
    # slow, and once in about thirty times torch's `unbind` fails in the middle of it.
    with patch.object(nn.Parameter, "__repr__", object.__repr__):
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def train(
    model: nn.Module,
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
    if library not in installed():
        raise ValueError(
            f"library={library!r} cannot run here: give one of {', '.join(installed())}"
            + (", or install the extra 'peers'" if library in LIBRARIES else "")
        )
    rank, world_size = dist.get_rank(), dist.get_world_size()
    micro_batch = sequences_per_rank(batch_size, world_size=world_size)
    device = next(model.parameters()).device
    engine = None
    if library == "FSDP2":
        model, optimizer = shard_with_fsdp2(model, lr=lr)
    elif library == "ZeroRedundancyOptimizer":
        model, optimizer = shard_with_torch_zero1(model, lr=lr)
    else:
        model = engine = shard_with_deepspeed(
            model, STAGE_OF[library], micro_batch=micro_batch, lr=lr
        )
    result: dict[str, list] = {"losses": [], "step_seconds": [], "bytes": []}
    for step in range(steps):
        tokens_BT, targets_BT = corpus.batch(
            step, rank=rank, world_size=world_size, micro_batch=micro_batch, block=block
        )
        before = wire_counters()
        start = time.perf_counter()
        loss = model(tokens_BT.to(device), targets_BT.to(device))
        if engine is not None:
            engine.backward(loss)
            engine.step()
        else:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        result["losses"].append(loss.item())
        mark_step(tokens=tokens_BT.numel(), loss=result["losses"][-1])
        result["step_seconds"].append(time.perf_counter() - start)
        after = wire_counters()
        counted = before is not None and after is not None
        result["bytes"].append(after[0] - before[0] if counted else None)
    losses = torch.tensor(result["losses"], dtype=torch.float64, device=device)
    of_all_ranks = [torch.empty_like(losses) for _ in range(world_size)]
    dist.all_gather(of_all_ranks, losses)
    result["losses"] = torch.stack(of_all_ranks).mean(dim=0).tolist()
    return result
