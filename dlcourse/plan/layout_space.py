"""All layouts of a job whose numbers divide.

What is left out, and why: tensor ranks that do not divide the heads or the widths; ranks of a
pipeline without a layer, and chunks of unequal size; chunks whose pipeline does not divide the
micro-batches (the interleaved schedule needs it); ZeRO over one rank. ``LIMITS`` says how far each
number goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import isqrt
from typing import Any

import numpy as np

from dlcourse.plan.job import Job
from dlcourse.plan.layouts import NAMES, SCHEDULES, Layout, Layouts
from dlcourse.words.refusal import Refusal

# Beyond these no published run goes, and none has a reason to
LIMITS = {"tensor": 64, "pipeline": 256, "chunks": 12, "context": 64, "micro_batch": 64}
_LIMITED = ("context", "stage", "micro_batch", "recompute", "offload")
_INTERLEAVED, _ONE_F_ONE_B = SCHEDULES.index("interleaved"), SCHEDULES.index("1f1b")


def divisors(n: int, most: int | None = None) -> list[int]:
    """Numbers that divide ``n``, up to ``most``."""
    root = isqrt(n)
    small = [d for d in range(1, min(root, most or root) + 1) if n % d == 0]
    large = [n // d for d in reversed(small) if d * d < n]
    return [d for d in small + large if d <= (most or n)]


def all_layouts(job: Job, **only: Sequence[int | str]) -> Layouts:
    """Every layout that uses the whole cluster.

    only: values that some of their numbers may have, as ``stage=[1], recompute=["none"]``. Names
        of ``context``, ``stage``, ``micro_batch``, ``recompute``, ``offload``.

    Raises:
        ValueError: none divides; it says what stands against it. Or a value that no layout has.
    """
    if unknown := sorted(set(only) - set(_LIMITED)):
        raise ValueError(f"{', '.join(unknown)}: only {', '.join(_LIMITED)} can be limited")
    numbers = {name: [_number(name, value) for value in own] for name, own in only.items()}
    blocks = [block for block in _blocks(job, numbers) if len(block[0])]
    if not blocks:
        raise _nothing(job)
    return Layouts(
        **{
            name: np.concatenate([block[number] for block in blocks])
            for number, name in enumerate(Layouts.__dataclass_fields__)
        }
    )


def _number(name: str, value: Any) -> int:
    """The value of a layout's number or name as ``Layouts`` has it."""
    Layout(**{name: value})  # refuses what no layout has
    return NAMES[name].index(value) if name in NAMES else int(value)


def tensor_sizes(job: Job) -> list[int]:
    """Ranks that can share each matrix."""
    shape = job.shape
    widths = [w for w in (shape.ffn, shape.shared_ffn) if w]
    return [
        t
        for t in divisors(shape.heads, LIMITS["tensor"])
        if job.cluster.gpus % t == 0
        and (shape.kv_heads % t == 0 or t % shape.kv_heads == 0)
        and all(width % t == 0 for width in widths)
        and (not job.sequence_parallel or job.sequence % t == 0)
    ]


def context_sizes(job: Job) -> list[int]:
    """Ranks that can share a sequence: powers of two, each with 1,024 tokens at least."""
    sizes = [1]
    while sizes[-1] < LIMITS["context"] and job.sequence // (2 * sizes[-1]) >= 1024:
        sizes.append(2 * sizes[-1])
    return [c for c in sizes if job.sequence % (2 * c) == 0 or c == 1]


def _pipelines(job: Job) -> list[tuple[int, int]]:
    """(stages, chunks) that share the layers; see ``layouts.stage_layers``.

    Their product divides the layers, or the layers and two more; or, without chunks, the last stage
    has fewer.
    """
    L = job.shape.layers
    stages = range(1, min(LIMITS["pipeline"], L) + 1)
    return [(p, v) for p in stages for v in range(1, LIMITS["chunks"] + 1) if _shares(L, p, v)]


def _shares(layers: int, p: int, v: int) -> bool:
    if p == 1:
        return v == 1
    if layers % (p * v) == 0:
        return True
    if (layers + 2) % (p * v) == 0:  # a first or last chunk may be the embedding or output alone
        return layers + 2 > p
    return v == 1 and -(-layers // p) * (p - 1) < layers


def _blocks(job: Job, only: Mapping[str, Sequence[int]]) -> Iterator[tuple[np.ndarray, ...]]:
    gpus, shape = job.cluster.gpus, job.shape

    def kept(name: str, values: Sequence[int]) -> list[int]:
        return [value for value in values if name not in only or value in only[name]]

    again, away = kept("recompute", (0, 1, 2)), kept("offload", (0, 1))
    contexts = kept("context", context_sizes(job))
    for t, (p, v), c in product(tensor_sizes(job), _pipelines(job), contexts):
        if gpus % (t * p * c):
            continue
        d = gpus // (t * p * c)
        if job.sequences % d:
            continue
        micro_batches = [
            b
            for b in kept("micro_batch", divisors(job.sequences // d, LIMITS["micro_batch"]))
            if v == 1 or (job.sequences // d // b) % p == 0
        ]
        if not micro_batches:
            continue
        hold = d * c * (1 if job.cut_experts else t)  # ranks of a stage with other experts
        experts = [e for e in divisors(shape.experts, gpus) if hold % e == 0] or [1]
        stages = kept("stage", (0, 1, 2, 3) if d * c > 1 else (0,))
        sizes = [np.array(n, float) for n in (experts, stages, micro_batches, again, away)]
        e, z, b, r, o = (axis.ravel() for axis in np.meshgrid(*sizes, indexing="ij"))
        schedule = _INTERLEAVED if v > 1 else _ONE_F_ONE_B
        fixed = [np.full(len(e), n, dtype=np.float64) for n in (d, t, p, v, c, schedule)]
        D, T, P, V, C, S = fixed
        yield D, T, P, V, C, e, z, b, r, S, o


def _data_sizes(job: Job) -> list[int]:
    """Data-parallel ranks that some layout has."""
    shared = {
        t * p * c
        for t, (p, _), c in product(tensor_sizes(job), _pipelines(job), context_sizes(job))
    }
    return sorted(job.cluster.gpus // n for n in shared if job.cluster.gpus % n == 0)


def nearest_batch(job: Job) -> int:
    """Tokens of the batch nearest to the job's that some layout divides."""
    wanted = job.sequences
    near = {max(1, n) * d for d in _data_sizes(job) for n in (wanted // d, wanted // d + 1)}
    # A sequence for each GPU is divided wherever nothing else is
    return job.sequence * min(near or {job.cluster.gpus}, key=lambda n: (abs(n - wanted), -n))


def _nothing(job: Job) -> Refusal:
    gpus = job.cluster.gpus
    return Refusal(
        "refusal.batch.divides",
        batch=job.batch_tokens,
        sequences=job.sequences,
        sequence=job.sequence,
        gpus=gpus,
        fewest=min(_data_sizes(job), default=gpus),
        nearest=nearest_batch(job),
    )
