"""Claim B7's rule, "choose by the model's size", beside the planner: a map of where it is right.

    found = size_map("h100")                    # models of 0.1e9 to 1e12 on 8 to 2,048 GPUs
    found.cell("6.7B", 512).slower              # 1.0: nothing is faster; None: it does not fit

The rule names a way to divide the model by its number of parameters alone. What it leaves open
(sizes of the mesh, micro-batch, recomputation, chunks of a pipeline) is chosen for it as well as
can be, so each cell shows the rule at its best.

Models: Brown et al., "Language Models are Few-Shot Learners", 2020, table 2.1, up to 13B, and
Narayanan et al., SC 2021, table 1, from 39B on; vocabulary 51,200, sequences of 2,048 tokens, a
batch of 2,048 of them (4.2 million tokens) in each cell. Context parallelism is left out: it is
younger than the rule, and such short sequences have no need of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcourse.plan.cluster import cluster_of
from dlcourse.plan.hf_config import published_model
from dlcourse.plan.job import Job
from dlcourse.plan.layout_space import all_layouts
from dlcourse.plan.layouts import OFFLOAD, RECOMPUTE, Layout, Layouts
from dlcourse.plan.model_shape import ModelShape, active_numbers, total_numbers
from dlcourse.plan.planner import SLACK, Answer, evaluate

# Layers, width, heads. GPT-3 1.3B has 24 heads of 128 in its table, which are not its width: 32.
SIZES = {
    "0.1B": (12, 768, 12),
    "0.4B": (24, 1024, 16),
    "0.8B": (24, 1536, 16),
    "1.3B": (24, 2048, 32),
    "2.7B": (32, 2560, 32),
    "6.7B": (32, 4096, 32),
    "13B": (40, 5120, 40),
    "39B": (48, 8192, 64),
    "76B": (60, 10240, 80),
    "146B": (80, 12288, 96),
    "310B": (96, 16384, 128),
    "1008B": (128, 25600, 160),
}
GPUS = (8, 32, 128, 512, 2048)
# Numbers of parameters below which each way is the rule's
BANDS = {"data": 1e9, "zero2": 1e10, "3d": 1e11, "3d_offload": np.inf}
# No FlashAttention (2022), no sequence parallelism and overlapped backward (2022), no pipeline
# messages beside computing (2023)
SOFTWARE: dict[str, dict[str, Any]] = {
    "today": {},
    "2020": {
        "attention": "unfused",
        "sequence_parallel": False,
        "overlap_backward": False,
        "overlap_pipeline": False,
    },
}
HARDWARE_OF_2020 = ("v100", "a100-40")
SEQUENCE, SEQUENCES = 2048, 2048
VERDICTS = ("right", "unsure", "slower", "too_large", "nothing")
PLANNER_ERROR = 0.15  # of its times, as tests/test_planner.py allows them beside published runs


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The rule and the planner on one model and cluster.

    verdict: "right" (the rule's best is within 5% of the fastest), "unsure" (within 15%, as far as
        the planner may be off), "slower", "too_large" (it fits in none of its layouts, others do),
        "nothing" (no layout fits at all).
    slower: seconds of a step over the fastest's, 1 or more; None where the rule does not fit.
    over_simplest: the same over the planner's simplest.
    rule, fastest, simplest: layouts, None where there is none that fits.
    """

    model: str
    parameters: float
    gpus: int
    way: str
    verdict: str
    slower: float | None = None
    over_simplest: float | None = None
    rule: Layout | None = None
    fastest: Layout | None = None
    simplest: Layout | None = None


@dataclass(frozen=True, kw_only=True)
class SizeMap:
    """Cells by model, then by GPUs, of one GPU type."""

    gpu: str
    software: str
    models: tuple[str, ...]
    gpus: tuple[int, ...]
    cells: tuple[Cell, ...]

    def cell(self, model: str, gpus: int) -> Cell:
        return self.cells[self.models.index(model) * len(self.gpus) + self.gpus.index(gpus)]

    def count(self, verdict: str, way: str | None = None) -> int:
        """Cells of this verdict, all or of one way."""
        return sum(c.verdict == verdict and way in (None, c.way) for c in self.cells)

    @property
    def possible(self) -> int:
        """Cells in which some layout fits."""
        return len(self.cells) - self.count("nothing")


def way_of(parameters: float) -> str:
    """What the rule says for so many parameters: one of ``BANDS``.

    Raises:
        ValueError: no positive number.
    """
    if not parameters > 0:
        raise ValueError(f"parameters={parameters!r}: give a number above 0, as 7e9")
    return next(way for way, below in BANDS.items() if parameters < below)


def layouts_of(way: str, layouts: Layouts, *, experts: bool = False) -> NDArray[np.bool_]:
    """Which layouts the rule means, as a mask.

    "3d" needs all three: data, tensor and pipeline above 1. ZeRO 1 beside it, as DeepSpeed's 3D
    has it, is granted.

    Args:
        experts: grant expert parallelism, of which the rule says nothing, in every way.
    """
    if way not in BANDS:
        raise ValueError(f"way={way!r}: give one of {', '.join(BANDS)}")
    base = layouts.context == 1
    if not experts:
        base = base & (layouts.expert == 1)
    stays = layouts.offload == OFFLOAD.index("none")
    if way in ("data", "zero2"):
        flat = (layouts.tensor == 1) & (layouts.pipeline == 1)
        return base & flat & stays & (layouts.stage == (0 if way == "data" else 2))
    cube = (layouts.data > 1) & (layouts.tensor > 1) & (layouts.pipeline > 1)
    if way == "3d":
        return base & cube & stays & (layouts.stage <= 1)
    return base & cube & ~stays & (layouts.stage == 3)


def gpt_like(name: str) -> ModelShape:
    """A model of ``SIZES``: tied embeddings, learned positions, biases, as GPT-3 has them."""
    layers, hidden, heads = SIZES[name]
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        value_dim=hidden // heads,
        ffn=4 * hidden,
        vocab=51200,
        gated=False,
        tied=True,
        positions=SEQUENCE,
        norm_bias=True,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    )


def size_map(
    gpu: str,
    *,
    models: Sequence[str] = tuple(SIZES),
    gpus: Sequence[int] = GPUS,
    software: str | None = None,
    way: str | None = None,
) -> SizeMap:
    """The rule on every model and cluster of one GPU type.

    Args:
        gpu: a type of ``cluster.gpu_types()``.
        software: "today" or "2020"; None is that of the hardware.
        way: one of ``BANDS`` for all models, instead of the rule's.

    Raises:
        ValueError: an unknown model, GPU type or software, or GPUs that are no whole nodes.
    """
    if unknown := [name for name in models if name not in SIZES]:
        raise ValueError(f"models has {unknown}: give some of {', '.join(SIZES)}")
    if software is None:
        software = "2020" if gpu in HARDWARE_OF_2020 else "today"
    if software not in SOFTWARE:
        raise ValueError(f"software={software!r}: give one of {', '.join(SOFTWARE)}")
    cells = [
        compare(
            Job(
                shape=gpt_like(model),
                cluster=cluster_of(gpu, gpus=number),
                batch_tokens=SEQUENCES * SEQUENCE,
                sequence=SEQUENCE,
                **SOFTWARE[software],
            ),
            way=way,
        )
        for model in models
        for number in gpus
    ]
    return SizeMap(
        gpu=gpu, software=software, models=tuple(models), gpus=tuple(gpus), cells=tuple(cells)
    )


def compare(job: Job, *, way: str | None = None, experts: bool = False) -> Cell:
    """The rule beside the planner on one job.

    Args:
        way: of ``BANDS``; None is what the rule says for all of the model's parameters.
        experts: grant expert parallelism; see ``layouts_of``.
    """
    parameters = total_numbers(job.shape)
    way = way_of(parameters) if way is None else way
    about: dict[str, Any] = {
        "model": job.shape.name,
        "parameters": parameters,
        "gpus": job.cluster.gpus,
        "way": way,
    }
    every = all_layouts(job)
    answer = evaluate(job, every.take(every.context == 1))
    if not answer.fits.any():
        return Cell(**about, verdict="nothing")
    seconds = np.where(answer.fits, answer.seconds["total"], np.inf)
    near = _only(answer, seconds <= (1 + SLACK) * seconds.min())
    about |= {"fastest": near.layouts[near.fastest], "simplest": near.layouts[near.simplest]}
    ruled = np.where(layouts_of(way, answer.layouts, experts=experts), seconds, np.inf)
    best = int(np.argmin(ruled))
    if not ruled[best] < np.inf:
        return Cell(**about, verdict="too_large")
    slower = float(seconds[best] / seconds.min())
    simple = float(near.seconds["total"][near.simplest])
    return Cell(
        **about,
        verdict=verdict_of(slower),
        slower=slower,
        over_simplest=float(seconds[best]) / simple,
        rule=answer.layouts[best],
    )


def verdict_of(slower: float) -> str:
    """Of seconds over those of the fastest: "right", "unsure" (an error's width) or "slower"."""
    if slower <= 1 + SLACK:
        return "right"
    return "unsure" if slower <= 1 + PLANNER_ERROR else "slower"


def _only(answer: Answer, which: NDArray[np.bool_]) -> Answer:
    """Some of its layouts: sorting a few is quick."""
    return replace(
        answer,
        layouts=answer.layouts.take(which),
        memory={name: values[which] for name, values in answer.memory.items()},
        seconds={name: values[which] for name, values in answer.seconds.items()},
        fits=answer.fits[which],
    )


# Published runs of mixtures of experts, in bf16 here: GPUs, sequences of 4,096 tokens, sides
RECIPES: dict[str, dict[str, Any]] = {
    "deepseek-v3": {
        "gpu": "h800",
        "gpus": 2048,
        "sequences": 15360,
        "tensor": 1,
        "pipeline": 16,
        "experts": (64,),
        "source": "DeepSeek-AI, DeepSeek-V3 Technical Report, 2024, sections 3.2 and 4.2",
    },
    "qwen3-235b-a22b": {
        "gpu": "h100",
        "gpus": 256,
        "sequences": 2048,
        "tensor": 2,
        "pipeline": 8,
        "experts": (8, 16, 32),
        "source": "public Megatron recipes for Qwen3-235B-A22B; data/published_runs.json",
    },
}


def tensor_of_mixtures(names: Sequence[str] = tuple(RECIPES)) -> list[dict[str, Any]]:
    """Which tensor size suits a mixture, beside its published run, whose pipeline is kept.

    The rule asks for tensor parallelism by all parameters; published runs go by the active ones.

    Returns:
        Rows of "model", "total", "active", "way" and "way_of_active" (of ``BANDS``), "published"
        (its tensor size), "source", and "slower": tensor size -> seconds over the best; None
        where nothing fits.
    """
    rows = []
    for name in names:
        recipe, shape = RECIPES[name], published_model(name)
        cluster = cluster_of(recipe["gpu"], gpus=recipe["gpus"])
        job = Job(shape=shape, cluster=cluster, batch_tokens=4096 * recipe["sequences"])
        seconds = {}
        for tensor in (1, 2, 4, 8):
            answer = evaluate(job, Layouts.of(_recipe_layouts(recipe, tensor)))
            fitting = answer.seconds["total"][answer.fits]
            seconds[tensor] = float(fitting.min()) if len(fitting) else None
        best = min(value for value in seconds.values() if value)
        total, active = total_numbers(shape), active_numbers(shape)
        rows.append(
            {
                "model": name,
                "total": total,
                "active": active,
                "way": way_of(total),
                "way_of_active": way_of(active),
                "published": recipe["tensor"],
                "source": recipe["source"],
                "slower": {size: s and s / best for size, s in seconds.items()},
            }
        )
    return rows


def _recipe_layouts(recipe: dict[str, Any], tensor: int) -> list[Layout]:
    """What a recipe leaves open, for one tensor size: chunks, micro-batch, recomputation."""
    stages, sequences = recipe["pipeline"], recipe["sequences"]
    data = recipe["gpus"] // (tensor * stages)
    choices = product((1, 2, 3, 4), (1, 2, 4), RECOMPUTE, recipe["experts"])
    return [
        Layout(
            data=data,
            tensor=tensor,
            pipeline=stages,
            chunks=chunks,
            schedule="interleaved" if chunks > 1 else "1f1b",
            expert=expert,
            stage=1,
            micro_batch=size,
            recompute=recompute,
        )
        for chunks, size, recompute, expert in choices
        if sequences % (data * size) == 0
        and (chunks == 1 or sequences // (data * size) % stages == 0)
    ]
