"""What is trained, on what, and the ways to spread it: a job, and layouts of it.

A layout says how one step is divided: data x tensor x pipeline x context ranks, experts over some
of them, a ZeRO stage, what is computed again, how many sequences at a time, what goes to the host.
``Layouts`` holds many, one array for each of these, so that all are judged at once.

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

from dlcourse.plan.cluster import Cluster
from dlcourse.plan.model_shape import ModelShape

Array = NDArray[np.float64]
RECOMPUTE = ("none", "selective", "full")
SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v")
OFFLOAD = ("none", "optimizer")
ATTENTION = ("flash", "flash1", "flash3", "unfused")
KERNELS = ("fused", "eager")
DISPATCH = ("once", "plain")
# Bytes of a logit: alive at the loss, moved in forward and in backward
LOSS_BYTES = {"float32": (12, 38, 14), "fused": (4, 4, 4)}
# Bytes of a parameter, of a gradient between steps, of the optimizer's state for it. Of gradients
# in float32 Megatron keeps 4 bytes; where each micro-batch's 16-bit gradient is added to a float32
# sum, both are there.
# SUM_BYTES move for each weight's gradient where a micro-batch's is added to the step's: 16 bits
# written, read, and summed in 16 bits; summed in float32 by the product itself; or both.
STATE_BYTES = {
    "bf16": (2, 2, 12),
    "bf16-float32-gradients": (2, 4, 12),
    "bf16-both-gradients": (2, 6, 12),
    "float32": (4, 4, 8),
    "fsdp": (4, 4, 8),
}
# Bytes of a parameter and of a gradient as they are sent. FSDP keeps float32, computes in 16 bits.
SENT_BYTES = {
    "bf16": (2, 2),
    "bf16-float32-gradients": (2, 4),
    "bf16-both-gradients": (2, 4),
    "float32": (4, 4),
    "fsdp": (2, 4),
}
SUM_BYTES = {
    "bf16": 8,
    "bf16-float32-gradients": 8,
    "bf16-both-gradients": 12,
    "float32": 12,
    "fsdp": 8,
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training job.

    Args:
        batch_tokens: tokens of a step, of all ranks together.
        sequence: tokens of a sequence.
        states: one of ``STATE_BYTES``: 16, 18 or 20 bytes a parameter; "fsdp" keeps
            float32 (16 bytes) and computes in 16 bits, as FSDP's mixed precision does.
        attention: "flash" (FlashAttention-2), the slower "flash1" (also Triton's) and the faster
            "flash3" (or cuDNN's) keep no scores; "unfused" as before 2022.
        kernels: "fused" norms, activations, rotations, or "eager" ones, each operator by itself.
        dispatch: "once" sends a token once to each rank or node that has experts of its, as DeepEP
            does; "plain" is an all-to-all, once for each expert.
        sequence_parallel: norms and residual stream are divided over the tensor ranks too.
        vocab_parallel: embedding and output layer are divided over the tensor ranks.
        overlap_tensor: tensor-parallel collectives run beside the products (user buffers).
        overlap_data: gradients are reduced beside the last backward, parameters gathered beside
            the first forward.
        overlap_backward: the backward's all-reduce before a layer's first product runs beside the
            gradients of its weights, as in Megatron since 2022.
        overlap_pipeline: with chunks, messages between stages run beside computing (since 2023).
        imbalance: tokens of the busiest expert rank over the mean: 1 is forced balance; natural
            routing costs 8 to 20%.
        loss: "float32" keeps 12 bytes a logit (logits, log-softmax and its gradient in float32;
            see ``formulas/activations.py``) and moves 52, operator by operator; "fused" keeps 4,
            logits and gradient in 16 bits, and moves 8.

    Raises:
        ValueError: sizes that are not positive, a batch that is no whole number of sequences, or
            a name that is unknown.
    """

    shape: ModelShape
    cluster: Cluster
    batch_tokens: int
    sequence: int = 4096
    states: str = "bf16-float32-gradients"
    attention: str = "flash"
    kernels: str = "fused"
    dispatch: str = "once"
    imbalance: float = 1.0
    loss: str = "float32"
    sequence_parallel: bool = True
    vocab_parallel: bool = True
    overlap_tensor: bool = False
    overlap_data: bool = True
    overlap_backward: bool = True
    overlap_pipeline: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "sequence"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of 1 or more")
        if not self.imbalance >= 1:
            raise ValueError(f"imbalance={self.imbalance!r}: the busiest rank has 1 or more")
        if self.batch_tokens % self.sequence:
            raise ValueError(
                f"batch_tokens={self.batch_tokens:,} are no whole number of sequences of "
                f"{self.sequence:,}: the nearest are {self._near(0):,} and {self._near(1):,}"
            )
        for name, allowed in (
            ("states", STATE_BYTES),
            ("attention", ATTENTION),
            ("kernels", KERNELS),
            ("dispatch", DISPATCH),
            ("loss", LOSS_BYTES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown: give one of {', '.join(allowed)}"
                )

    def _near(self, more: int) -> int:
        return max(1, self.batch_tokens // self.sequence + more) * self.sequence

    @property
    def sequences(self) -> int:
        """Of a step."""
        return self.batch_tokens // self.sequence


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
            allowed = _NAMES.get(field.name)
            if allowed and value not in allowed:
                raise ValueError(f"{field.name}={value!r}: give one of {', '.join(allowed)}")
            if field.name == "stage" and value not in (0, 1, 2, 3):
                raise ValueError(f"stage={value!r} of ZeRO: give 0, 1, 2 or 3")
            if not allowed and field.name != "stage" and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name}={value!r}: give a whole number of 1 or more")

        if self.chunks > 1 and self.schedule in ("gpipe", "1f1b", "zb-h1"):
            raise ValueError(
                f"chunks={self.chunks} with schedule={self.schedule!r}, which has one a rank: give "
                "schedule='interleaved' or 'zb-v'"
            )

    @property
    def gpus(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context


_NAMES = {"recompute": RECOMPUTE, "schedule": SCHEDULES, "offload": OFFLOAD}


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
                _NAMES[field.name].index(row[field.name])
                if field.name in _NAMES
                else row[field.name]
                for row in rows
            ]
            for field in fields(cls)
        }
        return cls(**{name: np.array(values, dtype=float) for name, values in numbers.items()})

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Layout:
        values: dict[str, Any] = {n: int(array[index]) for n, array in self.arrays().items()}
        return Layout(**values | {name: _NAMES[name][values[name]] for name in _NAMES})

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

    def expert_data(self) -> Array:
        """Ranks of a stage that have the same experts."""
        return np.maximum(1.0, self.data * self.context * self.tensor / self.expert)


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
