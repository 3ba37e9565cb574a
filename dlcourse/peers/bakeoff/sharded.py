"""ZeRO, in torch and in DeepSpeed: what the user of each library writes. See `data_parallel.py`."""

from __future__ import annotations

from functools import partial

import torch.distributed as dist
from torch import Tensor
from torch.optim import AdamW

from dlcourse.models.gpt import GPT
from dlcourse.peers import zero
from dlcourse.peers.bakeoff.job import Job, Step


def torch_zero1(model: GPT, job: Job) -> Step:
    """DDP, and an optimizer that keeps the state of a part of the parameters in each rank."""
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    ddp = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(ddp.parameters(), AdamW, lr=job.lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = ddp(tokens_BT, targets_BT)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def fsdp2(model: GPT, job: Job) -> Step:
    """FSDP2: each block is a unit, the rest of the model another one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = AdamW(model.parameters(), lr=job.lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model(tokens_BT, targets_BT)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def deepspeed_zero(model: GPT, job: Job, *, stage: int) -> Step:
    """DeepSpeed, by its configuration, which is for a small model.

    By default it reserves buckets of 500 million numbers: 1.9 GiB in each rank, by the ledger.
    """
    engine = zero.shard_with_deepspeed(model, stage, micro_batch=job.micro_batch, lr=job.lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        loss = engine(tokens_BT, targets_BT)
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return step


deepspeed_0, deepspeed_1, deepspeed_2, deepspeed_3 = (
    partial(deepspeed_zero, stage=stage) for stage in range(4)
)
