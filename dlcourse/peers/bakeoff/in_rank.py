"""What is measured of a contestant, in each of its ranks."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.measure.process_memory import pss_bytes
from dlcourse.peers.bakeoff import data_parallel, horovod_ranks
from dlcourse.peers.bakeoff.contestants import Contestant
from dlcourse.peers.bakeoff.job import Job
from dlcourse.peers.comparison import Step, compare_steps


def measure(contestant: Contestant, job: Job, turns: int) -> dict[str, Any]:
    """Runs in every rank: the steps of a contestant, in turns with DDP's.

    Returns:
        What `compare_steps` found, and "losses" of all steps, as this rank knows them; "process":
        bytes by which this process has grown until the second step was over (PSS). That counts the
        library's own code and what it holds outside of torch.
    """
    if contestant.package == "horovod":
        horovod_ranks.join()
    reference = _steps(data_parallel.ddp, job, whole=False, losses=[])
    losses: list[Tensor] = []
    grown: list[int] = []

    def make() -> Step:
        before = pss_bytes()
        build: Any = contestant.step
        if isinstance(build, str):
            module, _, function = build.partition(":")
            build = getattr(importlib.import_module(module), function)
        if contestant.strategy == "alone" and dist.get_rank() != 0:
            return lambda: torch.zeros(())  # the other ranks only wait
        step = _steps(build, job, whole=contestant.whole_batch, losses=losses)

        def counted() -> Tensor:
            loss = step()
            if len(losses) == 2:
                grown.append(max(0, pss_bytes() - before))
            return loss

        return counted

    found = compare_steps(make, reference, turns=turns)
    found["losses"] = [loss.item() for loss in losses]
    found["process"] = grown[0] if grown else 0
    return found


def _steps(build: Any, job: Job, *, whole: bool, losses: list[Tensor]) -> Step:
    """The steps of a training in order, each on the next batch."""
    take = build(job.model(), job)
    taken = 0

    def step() -> Tensor:
        nonlocal taken
        loss = take(*job.batch(taken, whole=whole))
        taken += 1
        losses.append(loss.detach())
        return loss

    return step
