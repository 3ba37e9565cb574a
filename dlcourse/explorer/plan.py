"""The planner under sliders: the best layout's memory against the card, and the map of what fits.

    from dlcourse import explore
    from dlcourse.explorer.plan import plan_picture

    explore(plan_picture, model=["llama-3-8b", "llama-3-70b"], gpus=[8, 64, 512])
    explore(plan_picture, stage=[0, 1, 2, 3], micro_batch=[1, 2, 4], recompute=["none", "full"])

What is no slider has the value below, or one of your own: ``partial(plan_picture, gpu="a100")``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlcourse.figures.picture import Picture, sentence
from dlcourse.figures.plan_map import Cell, plan_map
from dlcourse.plan.cluster import cluster_of
from dlcourse.plan.hf_config import published_model
from dlcourse.plan.job import Job
from dlcourse.plan.layout_memory import MEMORY
from dlcourse.plan.layout_space import all_layouts
from dlcourse.plan.planner import Answer, evaluate
from dlcourse.plan.report import layout_text
from dlcourse.words.strings import t

BATCH = 4_194_304  # tokens of a step, or the nearest that the GPUs divide
AUTO = {"micro_batch": [1, 2, 4, 8]}  # what "auto" chooses from, where that is not everything
_GB = 1e9
# The planner's categories in the course's: logits are activations, ZeRO's buffers hold what is sent
_CATEGORY = {"logits": "activations", "buffers": "communication"}


def plan_picture(
    model: str = "llama-3-8b",
    gpus: int = 64,
    gpu: str = "h100",
    stage: int | str = "auto",
    micro_batch: int | str = "auto",
    recompute: str = "auto",
    sequence: int = 4096,
) -> Picture:
    """Memory of the best layout by category, and for each tensor x pipeline size what is best.

    Each parameter may be a slider of ``explore``, by its name. "auto" lets the planner choose
    (micro-batches up to 8).
    The best is the fastest that fits, or where none does the smallest. No context parallelism, no
    offload: the map has two sides.

    Args:
        model: as ``dlcourse plan --model``: a name, or the path of a config.json.
        gpus: in the whole cluster; whole nodes, or a part of one.
        gpu: a type of ``dlcourse.plan.cluster.gpu_types``.
        stage: of ZeRO, 0 to 3. micro_batch: sequences at a time. recompute: "none", "selective",
            "full".
        sequence: tokens of a sequence; a step has about 4.2 million tokens.

    Raises:
        ValueError: an unknown model, GPU or value, or GPUs that are no whole nodes.
    """
    cluster = cluster_of(gpu, gpus=gpus)
    each = gpus * sequence
    job = Job(
        shape=published_model(model),
        cluster=cluster,
        batch_tokens=max(1, round(BATCH / each)) * each,
        sequence=sequence,
    )
    given = {"stage": stage, "micro_batch": micro_batch, "recompute": recompute}
    only = AUTO | {name: [value] for name, value in given.items() if value != "auto"}
    try:
        layouts = all_layouts(job, context=[1], offload=["none"], **only)
    except ValueError as error:
        if "can be divided by no layout" not in str(error):
            raise
        return sentence(t("plan.map.nothing", **_named(job)))
    answer = evaluate(job, layouts)
    held = answer.memory["total"]
    rank = np.where(answer.fits, answer.seconds["total"], 1e9 + held)  # fitting ones come first
    best = int(np.argmin(rank))
    sizes: dict[str, float] = {}
    for name in MEMORY:
        category = _CATEGORY.get(name, name)
        sizes[category] = sizes.get(category, 0.0) + float(answer.memory[name][best]) / _GB
    return plan_map(
        sizes,
        _cells(answer, rank, best),
        limit=cluster.memory / _GB,
        title=_title(answer, best),
        layout=layout_text(layouts[best]),
    )


def _cells(answer: Answer, rank: np.ndarray, best: int) -> dict[tuple[int, int], Cell]:
    """The best of each tensor and pipeline size."""
    layouts, total = answer.layouts, answer.seconds["total"]
    order = np.argsort(rank, kind="stable")
    places = layouts.tensor * 2**20 + layouts.pipeline
    _, first = np.unique(places[order], return_index=True)
    chosen: dict[tuple[int, int], Cell] = {}
    for index in order[first]:
        speed = float(total[best] / total[index]) if answer.fits[index] else None
        gb = float(answer.memory["total"][index]) / _GB
        place = (int(layouts.tensor[index]), int(layouts.pipeline[index]))
        chosen[place] = Cell(gb=gb, speed=speed, chosen=int(index) == best)
    return chosen


def _named(job: Job) -> dict[str, Any]:
    return {"model": job.shape.name, "gpus": job.cluster.gpus, "gpu": job.cluster.gpu.upper()}


def _title(answer: Answer, best: int) -> str:
    numbers, count = answer.numbers(best), len(answer.layouts)
    fit, named = int(answer.fits.sum()), _named(answer.job)
    if fit:
        mfu = f"{100 * numbers['mfu']:.0f}"
        return t("plan.map.title", fit=fit, all=count, mfu=mfu, **named)
    over = f"{(numbers['memory'] - answer.job.cluster.memory) / _GB:,.1f}"
    return t("plan.map.none", all=count, over=over, **named)
