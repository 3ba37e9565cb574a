"""Steps with imposed times, and when they did what: devices in a row, and a host rank.

On a laptop the ranks share a few cores, so waiting and overlap cannot be told apart there. See
``dlcourse.collectives.imposed_time``: the processes, the messages and their order stay real.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from dlcourse.collectives.imposed_time import compute, imposed_link, takes
from dlcourse.formulas.offload import OffloadJob
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.training.sharding_offload.layers_over_devices import LayersOverRanks
from dlcourse.training.sharding_offload.optimizer_offload import OptimizerOffload
from dlcourse.training.sharding_offload.rank_as_host import RankHost, serve

Batch = Callable[[int], tuple[Tensor, Tensor]]
STEPS = 3  # the fastest counts: a busy machine makes a step slower, never faster


def step_alone(config: GPTConfig, batch: Batch, *, forward: float, backward: float) -> float:
    """Seconds of a step of the whole model on one device."""
    model = takes(GPT(config), forward=forward, backward=backward)
    found = []
    for step in range(STEPS):
        begin = time.monotonic()
        model(*batch(step)).backward()
        found.append(time.monotonic() - begin)
    return min(found)


def relay_spans(
    config: GPTConfig,
    sizes: list[int],
    batch: Batch,
    *,
    forward: float,
    backward: float,
    latency: float,
    bandwidth: float,
    slower: float = 1,
) -> list[list[tuple[float, float, Any]]]:
    """What each device did in the fastest step, in seconds from its begin. All ranks call it.

    Args:
        sizes: layers of each rank.
        forward, backward: seconds of a device's layers.
        slower: times as long takes the last device.
    """
    model = LayersOverRanks(GPT(config), sizes)
    times = slower if dist.get_rank() == dist.get_world_size() - 1 else 1
    takes(model.stage, forward=times * forward, backward=times * backward)
    found = []
    with imposed_link(latency=latency, bandwidth=bandwidth):
        for step in range(STEPS):
            dist.barrier()
            model.step(*batch(step))
            found.append(model.spans)
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, found)
    steps = list(zip(*everywhere, strict=True))
    spans = min(steps, key=lambda rows: rows[0][-1][1] - rows[0][0][0])
    begin = spans[0][0][0]
    return [[(a - begin, b - begin, what) for a, b, what in row] for row in spans]


def offload_steps(config: GPTConfig, batch: Batch, job: OffloadJob, *, overlap: bool) -> list[Any]:
    """Steps with the optimizer's state on the last rank. All ranks call it.

    Returns:
        In rank 0 each step's moments: its start, the ends of forward and of backward, its end.
        In the last rank when it updated, (start, end) each. Seconds of one clock.
    """
    rank, host = dist.get_rank(), dist.get_world_size() - 1
    with imposed_link(latency=job.latency, bandwidth=job.bandwidth):
        if rank == 0:
            return _device_steps(config, batch, job, host, overlap)
        return _host_updates(job) if rank == host else []


def _device_steps(
    config: GPTConfig, batch: Batch, job: OffloadJob, host: int, overlap: bool
) -> list[list[float]]:
    model = GPT(config)
    for block in model.blocks:
        takes(block, forward=job.forward, backward=job.backward)
    offload = OptimizerOffload(model, RankHost(host), overlap=overlap)
    found = []
    for step in range(STEPS):
        moments = [time.monotonic()]
        loss = model(*batch(step))
        moments.append(time.monotonic())
        loss.backward()
        moments.append(time.monotonic())
        offload.step()
        found.append([*moments, time.monotonic()])
    return found


def _host_updates(job: OffloadJob) -> list[tuple[float, float]]:
    found = []

    def slow(*_: Any) -> None:
        begin = time.monotonic()
        compute(job.update)
        found.append((begin, time.monotonic()))

    hook = register_optimizer_step_post_hook(slow)
    try:
        serve(0, steps=STEPS)
    finally:
        hook.remove()
    return found
