"""A training step of one implementation beside another one's, in the same ranks.

    found = compare_steps(make, reference)

``make`` builds a model and returns ``step() -> loss``: one whole training step, optimizer included,
always on the same batch. ``reference`` is such a step, of what the others are compared with.
`dlcourse.figures.library_comparison` makes a table of what comes out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.collectives.tcp_counters import wire_counters
from dlcourse.measure import Recorder, live_bytes
from dlcourse.parallel import loop

Step = Callable[[], Tensor]


def one_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, tokens_BT: Tensor, targets_BT: Tensor
) -> Step:
    """The usual step, for a model that returns its loss."""

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model(tokens_BT, targets_BT)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def timed(step: loop.Step, seconds: list[float]) -> loop.Step:
    """``step``, which also appends the wall time that it took in this rank."""

    def run(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor | None:
        start = time.perf_counter()
        loss = step(tokens_BT, targets_BT)
        if loss is not None:
            loss.item()  # a GPU has finished by then
        seconds.append(time.perf_counter() - start)
        return loss

    return run


def compare_steps(
    make: Callable[[], Step], reference: Step | None = None, *, turns: int = 2
) -> dict[str, Any]:
    """Take two steps with what ``make`` builds, then some in turns with the ``reference``.

    Args:
        make, reference: called in all ranks. Without a reference there is no "ratio".
        turns: timed steps of each, one of one and one of the other, which a busy machine hits
            alike.

    Returns:
        For this rank. "loss": of the second step. "memory": bytes by category at the second
        step's highest moment, without what was there before. "sent": bytes over TCP in that step,
        None where the system does not count them. "calls": collectives, and messages that it
        sends. "ratio": time of a step, the fastest of each divided.
    """
    idle = live_bytes()
    step = make()
    step()  # in a first step optimizers make their state, and libraries what they need
    dist.barrier()
    before = wire_counters()
    with Recorder(dist.get_rank(), dist.get_world_size()) as recorder:
        loss = step()
    after = wire_counters()
    calls = [event for event in recorder.record["comm"] if event["op"] != "recv"]
    at_peak = recorder.record["memory"]["at_peak"]
    found: dict[str, Any] = {
        "loss": loss.item(),
        "memory": {name: max(0, count - idle[name]) for name, count in at_peak.items()},
        "calls": len(calls),
        "sent": after[0] - before[0] if before and after else None,
    }
    if reference is not None:
        racers = (step, reference)
        seconds: tuple[list[float], list[float]] = ([], [])
        for turn in range(2 * turns):
            dist.barrier()
            start = time.perf_counter()
            racers[turn % 2]()
            dist.barrier()  # a step is over when the last rank has finished it
            seconds[turn % 2].append(time.perf_counter() - start)
        ours, theirs = (min(times) for times in seconds)
        found["ratio"] = ours / theirs
    return found
