"""Idle time of a pipeline whose stages all take the same time: its bubble.

For GPipe and 1F1B, which have the same one: the last rank waits for p - 1 forwards before its first
micro-batch arrives, and for p - 1 backwards at the end, beside the m of each that it does itself.
And for interleaved 1F1B, whose stages are v times as short. Other schedules, and stages of unequal
times, are simulated: ``dlcourse.parallel.pipeline_simulation``.

Sources: Huang et al., "GPipe", NeurIPS 2019, section 2.3; Narayanan et al., "Efficient Large-Scale
Language Model Training on GPU Clusters", SC 2021, section 2.2, who give it over the ideal time.
"""

from __future__ import annotations

from typing import Any

from dlcourse.formulas.sizes import check_size


def idle_over_total(world_size: int, num_micro_batches: int, *, num_chunks: int = 1) -> float:
    """Share of the whole time that a rank is idle: (p - 1) / (v m + p - 1).

    Args:
        world_size: p, ranks of the pipeline.
        num_micro_batches: m.
        num_chunks: v, stages that each rank has; more than one is interleaved.

    Raises:
        ValueError: one of them is not a whole number of 1 or more.
    """
    check_size("world_size", world_size)
    check_size("num_micro_batches", num_micro_batches)
    check_size("num_chunks", num_chunks)
    return (world_size - 1) / (num_chunks * num_micro_batches + world_size - 1)


def idle_over_ideal(world_size: Any, num_micro_batches: Any, *, num_chunks: Any = 1) -> Any:
    """Idle time over the time without any: (p - 1) / (v m). Larger, for the same picture.

    Takes arrays of NumPy too, for the planner's many layouts at once.
    """
    return (world_size - 1) / (num_chunks * num_micro_batches)
