"""The planner's prediction for the course's own GPT on a mesh, of real ranks or of fake ones.

What ours does differently from the planner's usual software is said in ``scale_agreement.planned``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlcourse.figures.choosing import OURS, SIDES, batch_of_ours
from dlcourse.formulas.sizes import MODELS, GPTConfig
from dlcourse.formulas.states import CATEGORIES
from dlcourse.plan.layout_memory import rank_memory
from dlcourse.plan.layouts import Layouts
from dlcourse.plan.scale_agreement import planned


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

    "activations" are those of the highest moment.

    Raises:
        ValueError: sizes that do not divide.
    """
    job, layout, stage = planned(
        {"model": "gpt", "world": data * pipeline * tensor, "rank": 0, "stage": 0}
        | {"data": data, "pipeline": pipeline, "tensor": tensor, "expert": 1, "experts": 0}
        | {"micro_batch": micro_batch, "micro_batches": micro_batches, "block": block},
        config,
    )
    held = rank_memory(job, Layouts.of([layout]), stage)
    states = {name: float(held[name][0]) for name in CATEGORIES}
    activations = float((held["activations"] + held["logits"])[0])
    return states | {"activations": activations}


def planned_here(sides: Mapping[str, int]) -> dict[str, float]:
    """Of lesson 15's step on this machine's ranks."""
    return planned_memory(OURS, **sides, **batch_of_ours())


def planned_there(record: Mapping[str, Any]) -> dict[str, float]:
    """Of a step that ``scale`` took as one rank of thousands."""
    job = record["job"]
    names = (*SIDES, "micro_batch", "micro_batches", "block")
    return planned_memory(MODELS[job["model"]], **{name: job[name] for name in names})
