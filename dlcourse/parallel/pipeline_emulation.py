"""Four ranks on two cores that behave as four devices of a pipeline: stage times are given.

A schedule's bubble is idle time of *devices*. Ranks that share cores keep each other busy, and no
rank's clock can tell waiting for a neighbour from waiting for a core. So here an action occupies no
core: it sleeps. Messages, their order and the ranks are the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist

from dlcourse.parallel.pipeline import Runtime, gather_spans
from dlcourse.parallel.pipeline_schedules import Schedule, make_schedule
from dlcourse.parallel.pipeline_simulation import Gantt, message_time, simulate
from dlcourse.parallel.pipeline_stages import Sleeper


@dataclass(frozen=True)
class Emulation:
    """What the ranks did, and what the simulation says.

    Attributes:
        gantt: measured, in the fastest run.
        predicted: from the mean times of each stage's F, B and W in that run, and the median time
            of a message in the *other* runs: how long this one waited is not told.
        free: the same with messages that take no time.
    """

    gantt: Gantt
    predicted: Gantt
    free: Gantt


def run_emulated(
    schedule: str | Schedule,
    seconds: float,
    num_micro_batches: int = 8,
    repeats: int = 2,
    *,
    shape: tuple[int, ...] = (2, 64, 64),
) -> Emulation:
    """Run a schedule in all ranks, F, B and W of a *rank's whole part* taking ``seconds`` each.

    Args:
        schedule: one of ``SCHEDULES`` by name, or one of your own.
        num_micro_batches: where a name is given.
        repeats: 2 or more. The fastest run counts, the others had something else on the machine
            in them; how long a message takes is measured in those.
        shape: of what travels between stages; float32.
    """
    if isinstance(schedule, str):
        schedule = make_schedule(schedule, dist.get_world_size(), num_micro_batches)
    part = seconds / schedule.num_chunks
    like = torch.zeros(shape)
    workers = [Sleeper(part, part, part, lambda: like) for _ in range(schedule.num_chunks)]
    runtime = Runtime(schedule, workers)
    inputs = [like] * schedule.num_micro_batches
    gantts = []
    for _ in range(repeats):
        dist.barrier()
        runtime.run(inputs, inputs, like)
        gantts.append(gather_spans(runtime))
    gantts.sort(key=lambda gantt: gantt.total)
    best, *others = gantts
    t_send = median(message_time(schedule, other) for other in others)
    times = best.stage_times(schedule)
    predicted, free = (simulate(schedule, **times, t_send=t) for t in (t_send, 0.0))
    return Emulation(best, predicted, free)
