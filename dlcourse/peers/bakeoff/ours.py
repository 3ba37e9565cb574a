"""This course's own parallelisms, as their user writes them. See `data_parallel.py`."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from torch.optim import AdamW

from dlcourse.models.gpt import GPT
from dlcourse.peers.bakeoff.job import Job, Step


def data(model: GPT, job: Job) -> Step:
    """Lesson 03."""
    from dlcourse.parallel.data import OverlappedDataParallel

    replica = OverlappedDataParallel(model)
    optimizer = AdamW(replica.parameters(), lr=job.lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = replica(tokens_BT, targets_BT)
        loss.backward()
        replica.sync_gradients()
        optimizer.step()
        return loss.detach()

    return step


def zero1(model: GPT, job: Job) -> Step:
    """Lesson 06: the optimizer state in shards."""
    from dlcourse.parallel.zero import ZeRO1

    sharded = ZeRO1(model)
    optimizer = AdamW(sharded.shards, lr=job.lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = sharded(tokens_BT, targets_BT)
        loss.backward()
        sharded.sync_gradients()
        optimizer.step()
        sharded.sync_parameters()
        return loss.detach()

    return step


def zero2(model: GPT, job: Job) -> Step:
    """Lesson 06: gradients, too."""
    from dlcourse.parallel.zero2 import ZeRO2

    sharded = ZeRO2(model)
    optimizer = AdamW(sharded.shards, lr=job.lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = sharded(tokens_BT, targets_BT)
        loss.backward()
        sharded.sync_gradients()
        optimizer.step()
        sharded.sync_parameters()
        return loss.detach()

    return step


def zero3(model: GPT, job: Job) -> Step:
    """Lesson 06: parameters, too."""
    from dlcourse.parallel.zero3 import ZeRO3

    sharded = ZeRO3(model)
    optimizer = AdamW(sharded.shards, lr=job.lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = sharded(tokens_BT, targets_BT)
        loss.backward()
        sharded.sync_gradients()
        optimizer.step()
        sharded.sync_parameters()
        return loss.detach()

    return step


def tensor(model: GPT, job: Job) -> Step:
    """Lesson 04: the blocks cut, as the other libraries' rows do; embedding and head whole."""
    from dlcourse.parallel.tensor import tensor_parallel

    cut = tensor_parallel(model, vocabulary=False)
    optimizer = AdamW(cut.parameters(), lr=job.lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = cut(tokens_BT, targets_BT)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def pipeline(model: GPT, job: Job) -> Step:
    """Lesson 05: 1F1B."""
    from dlcourse.parallel.pipeline import PipelineParallel
    from dlcourse.parallel.pipeline_schedules import make_schedule

    schedule = make_schedule("1f1b", dist.get_world_size(), job.micro_batches)
    stages = PipelineParallel(model, schedule)
    optimizer = AdamW(stages.parameters(), lr=job.lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = stages.step(tokens_BT, targets_BT)
        optimizer.step()
        return loss

    return step
