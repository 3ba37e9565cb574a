"""The planner's prediction for the course's own GPT on a mesh, real ranks or thousands of fake ones.

The planner knows models and software of others. What ours does differently is said here: all in
float32, no sequence parallelism, embedding and output layer whole in their stages, and no GPU, whose
context and fragments would take memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlcourse.figures.choosing import OURS, SIDES, batch_of_ours
from dlcourse.formulas.sizes import MODELS, GPTConfig
from dlcourse.plan.cluster import cluster_of
from dlcourse.plan.job import Job
from dlcourse.plan.layout_memory import CATEGORIES, stage_memory
from dlcourse.plan.layouts import Layout, Layouts
from dlcourse.plan.model_shape import gpt_shape


def planned_memory(
    config: GPTConfig,
    *,
    data: int,
    pipeline: int,
    tensor: int,
    micro_batch: int,
    micro_batches: int,
    block: int,
) -> dict[str, float]:
    """Bytes that the planner expects in a rank of the first stage, by category.

    "activations" are those of the highest moment. The planner counts them in 16 bits; float32 takes
    twice as much.

    Raises:
        ValueError: sizes that do not divide.
    """
    gpus = data * pipeline * tensor
    job = Job(
        shape=gpt_shape(config),
        cluster=cluster_of("h100", gpus=gpus, node=gpus),
        batch_tokens=data * micro_batch * micro_batches * block,
        sequence=block,
        states="float32",
        sequence_parallel=False,
        vocab_parallel=False,
    )
    layout = Layout(data=data, tensor=tensor, pipeline=pipeline, micro_batch=micro_batch)
    held = stage_memory(job, Layouts.of([layout]), last=False)
    states = {name: float(held[name][0]) for name in CATEGORIES}
    return states | {"activations": 2 * float(held["activations"][0])}


def planned_here(sides: Mapping[str, int]) -> dict[str, float]:
    """Of lesson 15's step on this machine's ranks."""
    return planned_memory(OURS, **sides, **batch_of_ours())


def planned_there(record: Mapping[str, Any]) -> dict[str, float]:
    """Of a step that ``scale`` took as one rank of thousands."""
    job = record["job"]
    names = (*SIDES, "micro_batch", "micro_batches", "block")
    return planned_memory(MODELS[job["model"]], **{name: job[name] for name in names})
