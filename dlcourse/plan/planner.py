"""Judges every layout of a job: which fit, which is fastest, which is simplest, why others lose.

    answer = plan(Job(shape=published_model("llama-3-8b"), cluster=cluster_of("h100", gpus=64),
                      batch_tokens=4_194_304, sequence=8192))
    answer.fastest, answer.simplest, answer.why(index)

The simplest one is at most 5% slower than the fastest and uses the fewest techniques; what counts
as one is ``complexity``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dlcourse.plan.cluster_size import MOST, offload_needed, smallest_cluster
from dlcourse.plan.job import Array, Job
from dlcourse.plan.layout_memory import MEMORY, memory
from dlcourse.plan.layout_space import all_layouts
from dlcourse.plan.layout_time import SECONDS, hardware_flops, model_flops, step_seconds
from dlcourse.plan.layouts import RECOMPUTE, Layout, Layouts
from dlcourse.plan.model_shape import total_numbers
from dlcourse.words.refusal import Refusal

SLACK = 0.05  # what simplicity may cost
_BLOCK = 100_000  # layouts judged at a time: bounds the memory that judging takes


class DoesNotFit(Refusal):
    """No layout fits. The message says by how much, and on which cluster one would."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is known of all layouts of a job.

    Attributes:
        memory, seconds: by category and "total", one number for each layout.
        fits: whether it fits GPU and host.
    """

    job: Job
    layouts: Layouts
    memory: dict[str, Array]
    seconds: dict[str, Array]
    fits: NDArray[np.bool_]

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Those that fit, the fastest first; of equal ones the simplest, then the smallest."""
        which = np.flatnonzero(self.fits)
        total = np.round(self.seconds["total"][which], 9)
        keys = (self.memory["total"][which], complexity(self.layouts.take(which)), total)
        return which[np.lexsort(keys)]

    @property
    def fastest(self) -> int:
        return int(self.order[0])

    @cached_property
    def simplest(self) -> int:
        """The index of the simplest one that is within ``SLACK`` of the fastest."""
        total = self.seconds["total"]
        near = self.order[total[self.order] <= (1 + SLACK) * total[self.fastest]]
        return int(near[np.argmin(complexity(self.layouts.take(near)))])

    def numbers(self, index: int, *, tokens: float | None = None) -> dict[str, float]:
        """Of one layout: seconds, tokens_per_second, mfu, hfu, tflops (of a GPU), memory; with
        ``tokens`` of a budget days and gpu_hours."""
        seconds = float(self.seconds["total"][index])
        cluster, one = self.job.cluster, self.layouts.take(slice(index, index + 1))
        peak = cluster.gpus * cluster.peak
        rate = self.job.batch_tokens / seconds
        found = {
            "seconds": seconds,
            "tokens_per_second": rate,
            "mfu": model_flops(self.job) / seconds / peak,
            "hfu": float(hardware_flops(self.job, one)[0]) / seconds / peak,
            "tflops": model_flops(self.job) / seconds / cluster.gpus / 1e12,
            "memory": float(self.memory["total"][index]),
        }
        if tokens:
            found["days"] = tokens / rate / 86400
            found["gpu_hours"] = tokens / rate / 3600 * cluster.gpus
        return found

    def why(self, index: int) -> tuple[str, dict[str, float | str]]:
        """Why this layout is not the fastest: the name of a reason, and its numbers.

        "memory" (over: bytes, most: category), "host" (over), "slower" (percent, most: what the
        additional seconds are spent on, more: seconds), "same".
        """
        over = float(self.memory["total"][index] - self.job.cluster.memory)
        if over > 0:
            most = max(MEMORY, key=lambda name: float(self.memory[name][index]))
            return "memory", {"over": over, "most": most}
        over = float(self.memory["host"][index] - self.job.cluster.host_memory)
        if over > 0:
            return "host", {"over": over}
        best = self.fastest
        more = {n: float(self.seconds[n][index] - self.seconds[n][best]) for n in SECONDS}
        most = max(more, key=lambda name: more[name])
        percent = 100 * float(self.seconds["total"][index] / self.seconds["total"][best] - 1)
        if percent < 0.05:
            return "same", {}
        return "slower", {"percent": percent, "most": most, "more": more[most]}

    def best_of_families(self) -> dict[str, int]:
        """The best layout of each way to train: the fastest that fits, else what is nearest."""
        return {
            name: self._best(mask) for name, mask in families(self.layouts).items() if mask.any()
        }

    def _best(self, mask: NDArray[np.bool_]) -> int:
        which = np.flatnonzero(mask & self.fits)
        if len(which):
            return int(which[np.argmin(self.seconds["total"][which])])
        which = np.flatnonzero(mask)
        return int(which[np.argmin(self.memory["total"][which])])


def families(layouts: Layouts) -> dict[str, NDArray[np.bool_]]:
    """Ways to train that people ask about, as masks."""
    one_each = (layouts.tensor == 1) & (layouts.pipeline == 1) & (layouts.context == 1)
    stay = layouts.offload == 0
    flat = one_each & stay & (layouts.expert == 1)
    return {
        "ddp": flat & (layouts.stage == 0),
        "zero1": flat & (layouts.stage == 1),
        "zero2": flat & (layouts.stage == 2),
        "zero3": flat & (layouts.stage == 3),
        "offload": one_each & ~stay,
        "tensor": (layouts.tensor > 1) & (layouts.pipeline == 1) & stay,
        "pipeline": (layouts.tensor == 1) & (layouts.pipeline > 1) & stay,
        "both": (layouts.tensor > 1) & (layouts.pipeline > 1) & stay,
        "expert": (layouts.expert > 1) & stay,
        "context": (layouts.context > 1) & stay,
        "no_recompute": (layouts.recompute == RECOMPUTE.index("none")) & stay,
        "full_recompute": (layouts.recompute == RECOMPUTE.index("full")) & stay,
    }


def complexity(layouts: Layouts) -> Array:
    """How much there is to set up: 1 for each technique, 2 for a pipeline (its stages, schedule and
    loss are written anew), a half where a switch is enough."""
    return (
        1.0 * (layouts.tensor > 1)
        + 2.0 * (layouts.pipeline > 1)
        + 0.5 * (layouts.chunks > 1)
        + 1.0 * (layouts.context > 1)
        + 1.0 * (layouts.expert > 1)
        + 0.5 * (layouts.stage > 0)
        + 0.25 * np.maximum(0, layouts.stage - 1)
        + 0.5 * (layouts.recompute > 0)
        + 1.0 * (layouts.offload > 0)
    )


def evaluate(job: Job, layouts: Layouts) -> Answer:
    """Memory and time of these layouts."""
    found: list[tuple[dict[str, Array], dict[str, Array]]] = []
    for start in range(0, len(layouts), _BLOCK):
        part = layouts.take(slice(start, start + _BLOCK))
        found.append((memory(job, part), step_seconds(job, part)))
    held = {name: np.concatenate([each[0][name] for each in found]) for name in found[0][0]}
    seconds = {name: np.concatenate([each[1][name] for each in found]) for name in found[0][1]}
    fits = (held["total"] <= job.cluster.memory) & (held["host"] <= job.cluster.host_memory)
    return Answer(job=job, layouts=layouts, memory=held, seconds=seconds, fits=fits)


def judge(job: Job, layout: Layout) -> Answer:
    """One layout of your own. ValueError where it does not divide the job."""
    check_layout(job, layout)
    return evaluate(job, Layouts.of([layout]))


def check_layout(job: Job, layout: Layout) -> None:
    """Refuse a layout that is not of this job's cluster and batch."""
    shape = job.shape
    if layout.gpus != job.cluster.gpus:
        sides = {n: getattr(layout, n) for n in ("data", "tensor", "pipeline", "context", "gpus")}
        raise Refusal("refusal.layout.gpus", cluster=job.cluster.gpus, **sides)
    each = layout.data * layout.micro_batch
    if job.sequences % each:
        each_of = {"data": layout.data, "micro_batch": layout.micro_batch}
        raise Refusal("refusal.layout.batch", sequences=job.sequences, **each_of)
    for name, value, whole in (
        ("tensor", layout.tensor, shape.heads),
        ("expert", layout.expert, shape.experts or 1),
        ("context", layout.context, job.sequence),
    ):
        if whole % value:
            said = {"name": name, "value": value, "whole": whole}
            raise Refusal("refusal.layout.divides", model=shape.name, **said)
    micro_batches = job.sequences // each
    if layout.chunks > 1 and (layout.pipeline == 1 or micro_batches % layout.pipeline):
        sides = {"chunks": layout.chunks, "pipeline": layout.pipeline}
        raise Refusal("refusal.layout.chunks", micro_batches=micro_batches, **sides)
    if layout.pipeline * layout.chunks > shape.layers + 2:
        cut = {"pipeline": layout.pipeline, "chunks": layout.chunks}
        raise Refusal("refusal.layout.layers", model=shape.name, layers=shape.layers, **cut)
    hold = layout.data * layout.context * (1 if job.cut_experts else layout.tensor)
    if hold % layout.expert:
        key = "refusal.layout.expert.cut" if job.cut_experts else "refusal.layout.expert"
        raise Refusal(key, expert=layout.expert, ranks=hold)


def plan(job: Job) -> Answer:
    """Every layout of the job, judged.

    Raises:
        ValueError: nothing divides.
        DoesNotFit: nothing fits; says by how much, and the smallest cluster that would do.
    """
    answer = evaluate(job, all_layouts(job))
    if not answer.fits.any():
        raise _does_not_fit(answer)
    return answer


def _does_not_fit(answer: Answer) -> DoesNotFit:
    job = answer.job
    host = answer.memory["host"] > job.cluster.host_memory
    held = np.where(host, np.inf, answer.memory["total"])
    least = int(np.argmin(held))
    over = held[least] - job.cluster.memory
    needed = smallest_cluster(job)
    gpu = job.cluster.gpu
    then = Refusal("refusal.fits.none", gpu=gpu, most=MOST)
    if needed:
        away = offload_needed(job, needed)
        would = "refusal.fits.would_offload" if away else "refusal.fits.would"
        then = Refusal(would, gpu=gpu, needed=needed)
    return DoesNotFit(
        "refusal.fits",
        model=job.shape.name,
        billions=f"{total_numbers(job.shape) / 1e9:.1f}",
        gpus=job.cluster.gpus,
        gpu=gpu,
        layouts=len(answer.layouts),
        least=f"{held[least] / 1e9:.1f}",
        memory=f"{job.cluster.memory / 1e9:.1f}",
        over=f"{over / 1e9:.1f}",
        then=then,
    )
