"""Ways to spread a job over ranks: one layout, and many as arrays, so that all are judged at once.

A layout says how one step is divided: data x tensor x pipeline x context ranks, experts over some
of them, a ZeRO stage, what is computed again, how many sequences at a time, what goes to the host.

Ranks are numbered as Megatron numbers them: tensor next to each other, then context, then data,
pipeline stages farthest apart. Experts are spread over tensor x context x data ranks of a stage
(Megatron's "folding": an expert is never cut), so a stage needs max(tensor x context, expert)
ranks, not their product.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcourse.plan.job import Array, Job
from dlcourse.words.refusal import Refusal

RECOMPUTE = ("none", "selective", "full")
SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v")
OFFLOAD = ("none", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to spread a job. Names of ``recompute``, ``schedule`` and ``offload`` as above.

    Raises:
        ValueError: a number below 1, or a name that is unknown.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    chunks: int = 1
    context: int = 1
    expert: int = 1
    stage: int = 0
    micro_batch: int = 1
    recompute: str = "none"
    schedule: str = "1f1b"
    offload: str = "none"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            allowed = NAMES.get(field.name)
            if allowed and value not in allowed:
                known = ", ".join(allowed)
                raise Refusal("refusal.one_of", name=field.name, value=repr(value), known=known)
            if field.name == "stage" and value not in (0, 1, 2, 3):
                raise Refusal("refusal.stage", stage=repr(value))
            if not allowed and field.name != "stage" and (type(value) is not int or value < 1):
                raise Refusal("refusal.whole", name=field.name, value=repr(value), least=1)

        if self.chunks > 1 and self.schedule in ("gpipe", "1f1b", "zb-h1"):
            raise Refusal("refusal.chunks", chunks=self.chunks, schedule=repr(self.schedule))

    @property
    def gpus(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context


NAMES = {"recompute": RECOMPUTE, "schedule": SCHEDULES, "offload": OFFLOAD}


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """Many layouts: arrays of the same length, names as numbers of their tuples above."""

    data: Array
    tensor: Array
    pipeline: Array
    chunks: Array
    context: Array
    expert: Array
    stage: Array
    micro_batch: Array
    recompute: Array
    schedule: Array
    offload: Array

    @classmethod
    def of(cls, layouts: Iterable[Layout]) -> Layouts:
        """Arrays of these."""
        rows = [asdict(layout) for layout in layouts]
        numbers = {
            field.name: [
                NAMES[field.name].index(row[field.name]) if field.name in NAMES else row[field.name]
                for row in rows
            ]
            for field in fields(cls)
        }
        return cls(**{name: np.array(values, dtype=float) for name, values in numbers.items()})

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Layout:
        values: dict[str, Any] = {n: int(array[index]) for n, array in self.arrays().items()}
        return Layout(**values | {name: NAMES[name][values[name]] for name in NAMES})

    def arrays(self) -> dict[str, Array]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def take(self, which: slice | NDArray[np.intp] | NDArray[np.bool_]) -> Layouts:
        """Some of them: a slice, indices or a mask."""
        return Layouts(**{name: array[which] for name, array in self.arrays().items()})

    @property
    def gpus(self) -> Array:
        return self.data * self.tensor * self.pipeline * self.context

    def micro_batches(self, job: Job) -> Array:
        """Of a step, in each pipeline."""
        return job.sequences / (self.data * self.micro_batch)

    def expert_data(self, job: Job) -> Array:
        """Ranks of a stage that have the same experts."""
        spread = 1.0 if job.cut_experts else self.tensor
        return np.maximum(1.0, self.data * self.context * spread / self.expert)


def vocab_ranks(job: Job, layouts: Layouts) -> Array:
    """Ranks that share embedding and output layer."""
    return layouts.tensor if job.vocab_parallel else np.ones_like(layouts.tensor)


def stage_layers(job: Job, layouts: Layouts) -> tuple[Array, Array, Array]:
    """Layers of the first, a middle and the last pipeline rank.

    Where the pipeline's chunks do not divide the layers but divide layers + 2, embedding and
    output count as one layer each, as Llama 3 and Megatron do it.
    """
    L, parts = job.shape.layers, layouts.pipeline * layouts.chunks
    whole = np.mod(L, parts) == 0
    two_more = np.logical_and(~whole, np.mod(L + 2, parts) == 0)
    middle = np.where(whole, L, np.where(two_more, L + 2, np.ceil(L / parts) * parts))
    middle = middle / layouts.pipeline
    less = np.where(np.logical_and(two_more, layouts.pipeline > 1), 1.0, 0.0)
    rest = L - middle * (
        layouts.pipeline - 1
    )  # where nothing divides the last one has what is left
    last = np.where(whole, middle, np.where(two_more, middle - 1, np.maximum(rest, 0)))
    one = layouts.pipeline == 1
    return np.where(one, L, middle - less), np.where(one, L, middle), np.where(one, L, last)
