"""Long runs on machines that fail, simulated: what the closed forms of goodput are held against.

    gaps = failure_gaps(mtbf, count=100_000, shape=0.7)     # times between failures of the job
    run_through(gaps, interval=..., checkpoint=..., restart=...).goodput

Exponential gaps (shape 1) are what Young and Daly assume. Real ones come in bursts: Weibull's
distribution with a shape of 0.7 to 0.8, fewer failures the longer none has come, fits the logs of
Los Alamos' clusters, and repair times are lognormal: Schroeder and Gibson, "A Large-Scale Study of
Failures in High-Performance Computing Systems", DSN 2006 and IEEE TDSC 7 (4), 2010.

Everything is seeded: the same arguments give the same numbers. Times are in one unit, your choice.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dlcourse.formulas.goodput import (
    best_interval,
    check_failures,
    check_interval,
    check_nodes,
    job_goodput,
    job_mtbf,
)

Array = NDArray[np.float64]
GAPS = 200_000  # goodput is then within 0.2 points of its mean; see tests/test_goodput.py


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a run's time went to, and how often it failed.

    lost: work that was done again, and checkpoints that were not finished.
    waiting: for a node, where no spare was left.
    """

    useful: float
    checkpoint: float
    restart: float
    lost: float
    waiting: float = 0.0
    failures: int = 0

    @property
    def total(self) -> float:
        return self.useful + self.checkpoint + self.restart + self.lost + self.waiting

    @property
    def goodput(self) -> float:
        return self.useful / self.total


def failure_gaps(mtbf: float, *, count: int = GAPS, shape: float = 1.0, seed: int = 0) -> Array:
    """Times between failures, of mean ``mtbf``. Shape: (count,).

    Args:
        shape: of Weibull's distribution; 1 is exponential, below 1 failures come in bursts.
    """
    check_failures(mtbf=mtbf)
    if not 0.1 <= shape <= 10:
        raise ValueError(
            f"shape={shape!r} of Weibull's distribution: give 0.1 to 10, 1 has no memory"
        )
    if type(count) is not int or count < 1:
        raise ValueError(f"count={count!r}: give a whole number of 1 or more failures")
    scale = mtbf / math.gamma(1 + 1 / shape)
    return scale * np.random.default_rng(seed).weibull(shape, count)


def run_through(gaps: Array, *, interval: float, checkpoint: float, restart: float = 0.0) -> Spent:
    """A run without end through these failures: each gap begins with a restart, then segments.

    A segment is ``interval`` of work and its checkpoint; one that a failure cuts is lost.

    Args:
        gaps: times between failures; shape (n,).
    """
    check_failures(interval=interval, checkpoint=checkpoint, restart=restart)
    again = np.minimum(gaps, restart)
    segments = float(np.floor((gaps - again) / (interval + checkpoint)).sum())
    useful, written = segments * interval, segments * checkpoint
    total, started = float(gaps.sum()), float(again.sum())
    return Spent(
        useful=useful,
        checkpoint=written,
        restart=started,
        lost=total - useful - written - started,
        failures=len(gaps),
    )


def finish(
    work: float, gaps: Array, *, interval: float, checkpoint: float, restart: float = 0.0
) -> Spent:
    """A run of so much work, from its first step to its last; after the last no checkpoint.

    Raises:
        ValueError: checkpoints that save nothing, or a run that does not end within these gaps.
    """
    check_interval(interval, checkpoint=checkpoint, work=work)
    again = np.minimum(gaps, np.where(np.arange(len(gaps)) > 0, restart, 0.0))
    segments = np.floor((gaps - again) / (interval + checkpoint))
    before = np.concatenate([[0.0], np.cumsum(segments)[:-1]])
    left = work - before * interval
    written = np.maximum(0, np.ceil(left / interval - 1e-12) - 1)
    needed = again + left + written * checkpoint
    ends = np.flatnonzero(needed <= gaps)
    if not len(ends):
        done = segments.sum() * interval
        raise ValueError(
            f"work={work:g} is not done after {len(gaps):,} failures, {done:g} is: give more gaps, "
            "or a job that fails less often"
        )
    last = int(ends[0])
    total = float(gaps[:last].sum() + needed[last])
    saved = float((before[last] + written[last]) * checkpoint)
    started = float(again[: last + 1].sum())
    return Spent(
        useful=work,
        checkpoint=saved,
        restart=started,
        lost=total - work - saved - started,
        failures=last,
    )


def goodput_by_interval(
    gaps: Array, intervals: Sequence[float], *, checkpoint: float, restart: float = 0.0
) -> Array:
    """Goodput for each interval through the same failures: so intervals differ, and not luck."""
    return np.array(
        [
            run_through(gaps, interval=each, checkpoint=checkpoint, restart=restart).goodput
            for each in intervals
        ]
    )


def best_simulated(
    checkpoint: float, mtbf: float, *, restart: float = 0.0, shape: float = 1.0, seed: int = 0
) -> float:
    """The best of 41 intervals from half to twice the formula's best, through 200,000 failures."""
    gaps = failure_gaps(mtbf, shape=shape, seed=seed)
    intervals = best_interval(checkpoint, mtbf) * np.geomspace(0.5, 2, 41)
    found = goodput_by_interval(gaps, list(intervals), checkpoint=checkpoint, restart=restart)
    return float(intervals[found.argmax()])


def run_with_spares(
    nodes: int,
    *,
    spares: int,
    node_mtbf: float,
    repair: float,
    interval: float,
    checkpoint: float,
    restart: float = 0.0,
    failures: int = 20_000,
    repair_sigma: float = 1.0,
    seed: int = 0,
) -> Spent:
    """A run on nodes that fail one by one and are repaired, failure by failure.

    All nodes fail alike, spares too; only a failure of one at work stops the job. It waits until
    as many are whole as it needs.

    Args:
        failures: of nodes, that are gone through.
        repair_sigma: of the lognormal repair time, whose mean is ``repair``.
    """
    check_nodes(nodes, spares)
    check_failures(node_mtbf=node_mtbf, repair=repair)
    check_interval(interval, checkpoint=checkpoint)
    rng = np.random.default_rng(seed)
    whole = nodes + spares
    back: list[float] = []  # when each broken node returns
    gaps: list[float] = []
    now = gap = waiting = 0.0
    for _ in range(failures):
        # Without memory: the next failure may be drawn anew after each event
        while True:
            fails = now + (rng.exponential(node_mtbf / whole) if whole else math.inf)
            event = min(fails, back[0] if back else math.inf)
            if whole >= nodes:
                gap += event - now
            else:
                waiting += event - now
            now = event
            if event == fails:
                break
            heapq.heappop(back)
            whole += 1
        if whole >= nodes and rng.random() < nodes / whole:
            gaps.append(gap)
            gap = 0.0
        whole -= 1
        mean = math.log(repair) - repair_sigma**2 / 2 if repair else -math.inf
        heapq.heappush(back, now + (rng.lognormal(mean, repair_sigma) if repair else 0.0))
    at_work = np.array(gaps)
    spent = run_through(at_work, interval=interval, checkpoint=checkpoint, restart=restart)
    return replace(spent, waiting=waiting)


def slowest_step(ranks: int, *, spread: float, steps: int = 400, seed: int = 0) -> float:
    """Mean time of synchronous steps over a rank's mean time: drawn for each rank and step."""
    rng = np.random.default_rng(seed)
    return 1 + spread * float(np.mean([rng.standard_normal(ranks).max() for _ in range(steps)]))


def goodput_by_size(
    sizes: Sequence[int],
    *,
    node_mtbf: float,
    checkpoint: float,
    restart: float,
    node: int = 8,
    interval: float | None = None,
    shape: float = 1.0,
    count: int = 20_000,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Goodput by GPUs, by the closed form and simulated; a row for each size.

    Args:
        sizes: GPUs, whole nodes of ``node``.
        interval: of work between checkpoints; None is the best for each size.
        shape: of the simulated failures; see ``failure_gaps``.

    Returns:
        Rows of "gpus", "mtbf", "interval", "goodput", "simulated".
    """
    rows = []
    for gpus in sizes:
        if gpus < node or gpus % node:
            raise ValueError(f"sizes has {gpus} GPUs: give whole nodes of {node}")
        mtbf = job_mtbf(node_mtbf, gpus // node)
        chosen = best_interval(checkpoint, mtbf) if interval is None else interval
        shares = job_goodput(
            gpus // node,
            node_mtbf=node_mtbf,
            checkpoint=checkpoint,
            interval=interval,
            restart=restart,
        )
        gaps = failure_gaps(mtbf, count=count, shape=shape, seed=seed)
        spent = run_through(gaps, interval=chosen, checkpoint=checkpoint, restart=restart)
        rows.append(
            {
                "gpus": gpus,
                "mtbf": mtbf,
                "interval": chosen,
                "goodput": shares["useful"],
                "simulated": spent.goodput,
            }
        )
    return rows
