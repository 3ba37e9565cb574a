"""Alpha-beta: how long a collective takes, before it is run.

A message of b bytes takes alpha + b * beta seconds: alpha to get going, beta for each byte.
Which messages have to be added up depends on what they queue for:

- In a cluster each rank has a wire of its own. Only messages that wait for one another count:
  `rounds` * alpha + `volume` * nbytes * beta.
- On one machine all ranks share the cores and the memory that carry every message, so all of
  them count: `messages` * alpha + `total` * nbytes * beta.

``traffic.py`` has these counts for each algorithm, and says what ``nbytes`` is.

Sources: Thakur, Rabenseifner and Gropp (see ``traffic.py``); nccl-tests, doc/PERFORMANCE.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dlcourse.formulas.states import check_world_size
from dlcourse.formulas.traffic import ALGORITHMS, Algorithm, algorithm, wire_bytes

COLLECTIVES = tuple(dict.fromkeys(entry.collective for entry in ALGORITHMS.values()))


def bus_bandwidth(collective: str, nbytes: float, world_size: int, seconds: float) -> float:
    """Bytes per second, as nccl-tests defines "busbw": comparable with a wire's speed for any p.

    What a perfect implementation must send, over the time; the whole tensor for a broadcast and a
    reduce, which one rank sends or receives whole.
    """
    if collective not in COLLECTIVES:
        known = ", ".join(sorted(COLLECTIVES))
        raise ValueError(f"collective is {collective!r}: known are {known}")
    if collective in ("broadcast", "reduce"):
        return nbytes / seconds
    return wire_bytes(collective, nbytes, check_world_size(world_size)) / seconds


@dataclass(frozen=True)
class CostModel:
    """What a message costs.

    Attributes:
        alpha: seconds to start a message.
        beta: seconds for each byte; 1 / beta is the bandwidth.
        one_machine: all messages queue for the same cores and memory; else each rank has its wire.
        error: mean relative error on the measurements that it was fitted to, 0.1 for 10%.
    """

    alpha: float
    beta: float
    one_machine: bool = False
    error: float = 0.0

    def predict(self, name: str, nbytes: float, world_size: int) -> float:
        """Seconds that one of ``ALGORITHMS`` takes."""
        starts, volume = _queue(algorithm(name), check_world_size(world_size), self.one_machine)
        return starts * self.alpha + volume * nbytes * self.beta

    def crossover(self, first: str, second: str, world_size: int) -> float | None:
        """Bytes at which both take equally long; None where one is never slower.

        ``crossover("tree_all_reduce", "ring_all_reduce", 8)``: below it, take the tree.
        """
        p = check_world_size(world_size)
        starts, volume = _queue(algorithm(first), p, self.one_machine)
        other_starts, other_volume = _queue(algorithm(second), p, self.one_machine)
        slope = (other_volume - volume) * self.beta
        n = (starts - other_starts) * self.alpha / slope if slope else 0.0
        return n if n > 0 else None


def _queue(entry: Algorithm, p: int, one_machine: bool) -> tuple[float, float]:
    """(messages, bytes / nbytes) that are paid for one after the other."""
    if one_machine:
        return entry.messages(p), entry.total(p)
    return entry.rounds(p), entry.volume(p)


def fit_line(points: Iterable[tuple[float, float]]) -> tuple[float, float, float]:
    """Alpha and beta of seconds = alpha + beta * bytes, for one call of one library.

    By least squares on the *relative* error: on the absolute one the largest tensor would decide
    alone, and alpha would be noise. Neither becomes negative.

    Args:
        points: (bytes, seconds), of two sizes or more.

    Returns:
        alpha in seconds, beta in seconds a byte, and the mean relative error, 0.1 for 10%.
    """
    return _least_squares((1 / seconds, nbytes / seconds) for nbytes, seconds in points)


def fastest(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each algorithm and size, "seconds" that of its fastest call in all "samples".

    Other programs only ever make a call slower, so the fastest is nearest to what it costs.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        key = row["algorithm"], row["bytes"]
        seconds = min([*row["samples"], found.get(key, {}).get("seconds", float("inf"))])
        kept = {name: row[name] for name in ("algorithm", "collective", "ranks", "bytes")}
        found[key] = {**kept, "seconds": seconds}
    return [found[key] for key in sorted(found)]


def fit(rows: Iterable[Mapping[str, Any]], *, one_machine: bool = False) -> CostModel:
    """Alpha and beta from measurements, by least squares on the *relative* error.

    On the absolute error the largest tensor would decide alone, and alpha would be noise.

    Args:
        rows: each with "algorithm", "bytes", "ranks" and "seconds", as `benchmark.measure` makes
            them. Rows of algorithms that the model does not know (torch's own) are left out.
        one_machine: what messages queue for; see `CostModel`. Try both: the error tells.
    """
    points = []
    for row in rows:
        if row["algorithm"] in ALGORITHMS and row["ranks"] > 1:
            p, seconds = row["ranks"], row["seconds"]
            starts, volume = _queue(ALGORITHMS[row["algorithm"]], p, one_machine)
            points.append((starts / seconds, volume * row["bytes"] / seconds))
    alpha, beta, error = _least_squares(points)
    return CostModel(alpha, beta, one_machine, error)


def _least_squares(divided: Iterable[tuple[float, float]]) -> tuple[float, float, float]:
    """Alpha, beta and the mean error of alpha * x + beta * y = 1; neither is negative.

    divided: (x, y) of each measurement, both divided by the time that it took.
    """
    points = list(divided)
    xx, yy = sum(x * x for x, _ in points), sum(y * y for _, y in points)
    xy = sum(x * y for x, y in points)
    x, y = sum(x for x, _ in points), sum(y for _, y in points)
    determinant = xx * yy - xy * xy
    if len(points) < 2 or determinant <= 1e-12 * xx * yy:
        raise ValueError(
            f"rows has {len(points)} usable measurements, which cannot tell alpha from beta: "
            "measure a small and a large tensor, with an algorithm of this module"
        )
    alpha, beta = (x * yy - y * xy) / determinant, (y * xx - x * xy) / determinant
    if alpha < 0:  # too little to see beside the bytes
        alpha, beta = 0.0, y / yy
    elif beta < 0:
        alpha, beta = x / xx, 0.0
    return alpha, beta, sum(abs(alpha * x + beta * y - 1) for x, y in points) / len(points)
