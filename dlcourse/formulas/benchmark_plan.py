"""What to benchmark before a job runs, and how long that takes.

A strategy calls a few collectives in each step (lessons 01, 03 to 08 record them); nothing else has
to be timed. How long a sweep over sizes takes follows from alpha and beta.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlcourse.formulas.collective_time import CostModel

# What a training step calls, by strategy
CALLS: dict[str, tuple[str, ...]] = {
    "data": ("all_reduce",),
    "tensor": ("all_reduce",),
    "pipeline": ("send_recv",),
    "zero": ("all_gather", "reduce_scatter"),
    "moe": ("all_reduce", "all_to_all"),
    "moe_zero": ("all_gather", "reduce_scatter", "all_to_all"),
}
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
# nccl-tests' program for each, and the algorithm whose time is computed
PROGRAMS = {
    "all_reduce": ("all_reduce_perf", "ring_all_reduce"),
    "all_gather": ("all_gather_perf", "ring_all_gather"),
    "reduce_scatter": ("reduce_scatter_perf", "ring_reduce_scatter"),
    "all_to_all": ("alltoall_perf", "direct_all_to_all"),
    "send_recv": ("sendrecv_perf", ""),
}
SWEEP = tuple(8 << k for k in range(31))  # bytes: nccl-tests -b 8 -e 8G -f 2
RUNS = 2 * (20 + 5)  # its defaults: 5 runs to warm up and 20 timed, in place and out of place


def sweep_seconds(
    collective: str, network: CostModel, world_size: int, sizes: Sequence[int] = SWEEP
) -> float:
    """Seconds that nccl-tests takes for one collective, its start not counted.

    Args:
        collective: one of ``COLLECTIVES``.
        network: alpha and beta of a message between two of the GPUs.
        world_size: GPUs.
        sizes: bytes, as nccl-tests counts them.
    """
    if collective not in PROGRAMS:
        raise ValueError(f"collective={collective!r}: give one of {', '.join(COLLECTIVES)}")
    algorithm = PROGRAMS[collective][1]
    if not algorithm:  # one message
        return RUNS * sum(network.alpha + network.beta * n for n in sizes)
    return RUNS * sum(network.predict(algorithm, n, world_size) for n in sizes)
