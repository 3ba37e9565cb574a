"""Alpha-beta: what a collective costs, before it is run.

A message of b bytes takes alpha + b * beta seconds: alpha to get going, beta for each byte.
Which messages have to be added up depends on what they queue for:

- In a cluster each rank has a wire of its own. Only messages that wait for one another count:
  `rounds` * alpha + `volume` * n * beta.
- On one machine all ranks share the cores and the memory that carry every message, so all of
  them count: `messages` * alpha + `total` * n * beta.

`n` is always the size in bytes of the whole tensor, as nccl-tests counts: the input of an
all-reduce or reduce-scatter, the *output* of an all-gather, what one rank sends in an
all-to-all (the piece for itself included). `p` is the number of ranks.

Sources: Thakur, Rabenseifner and Gropp (see tree.py); nccl-tests, doc/PERFORMANCE.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Count = Callable[[int], float]  # of the number of ranks


@dataclass(frozen=True)
class Algorithm:
    """How one algorithm does one collective.

    Attributes:
        collective: what it does, as torch.distributed names it.
        rounds: messages that wait for one another.
        volume: bytes in those, divided by n.
        messages: messages that all ranks send together.
        total: bytes that all ranks send together, divided by n.
        busiest: bytes that the rank which sends most sends, divided by n.
    """

    collective: str
    rounds: Count
    volume: Count
    messages: Count
    total: Count
    busiest: Count


def _log2(p: int) -> int:
    """Rounds of a tree over p ranks: log2(p), rounded up."""
    return (p - 1).bit_length()


def _others(times: float = 1) -> Count:
    return lambda p: times * (p - 1)


def _any(times: float = 1) -> Count:
    return lambda p: times * (p > 1)


def _even(collective: str, times: int, rounds: Count) -> Algorithm:
    """All ranks send the same: a p-th part of n to each other rank, `times` times."""

    def each(p: int) -> float:
        return times * (p - 1) / p

    def messages(p: int) -> float:
        return times * p * (p - 1)

    return Algorithm(collective, rounds, each, messages, _others(times), each)


ALGORITHMS: dict[str, Algorithm] = {
    "ring_all_reduce": _even("all_reduce", 2, rounds=_others(2)),
    "ring_reduce_scatter": _even("reduce_scatter", 1, rounds=_others()),
    "ring_all_gather": _even("all_gather", 1, rounds=_others()),
    "direct_all_reduce": _even("all_reduce", 2, rounds=_any(2)),
    "direct_reduce_scatter": _even("reduce_scatter", 1, rounds=_any()),
    "direct_all_gather": _even("all_gather", 1, rounds=_any()),
    "direct_all_to_all": _even("all_to_all", 1, rounds=_any()),
    # In the order of the attributes: rounds, volume, messages, total, busiest.
    "tree_broadcast": Algorithm("broadcast", _log2, _log2, _others(), _others(), _log2),
    "tree_reduce": Algorithm("reduce", _log2, _log2, _others(), _others(), _any()),
    "tree_all_reduce": Algorithm(
        "all_reduce", lambda p: 2 * _log2(p), lambda p: 2 * _log2(p), _others(2), _others(2), _log2
    ),
    # Rank 0 serves one after the other.
    "naive_all_reduce": Algorithm(
        "all_reduce", _others(2), _others(2), _others(2), _others(2), _others()
    ),
}

# nccl-tests' factors: what a perfect implementation must send or receive, divided by n.
_BUS: dict[str, Count] = {
    "all_reduce": lambda p: 2 * (p - 1) / p,
    "all_gather": lambda p: (p - 1) / p,
    "reduce_scatter": lambda p: (p - 1) / p,
    "all_to_all": lambda p: (p - 1) / p,
    "broadcast": lambda p: 1,
    "reduce": lambda p: 1,
}


def algorithm(name: str) -> Algorithm:
    """The entry of `ALGORITHMS`; a ValueError for a name that is not there."""
    return _entry(ALGORITHMS, "algorithm", name)


def wire_bytes(name: str, n: float, p: int) -> float:
    """Bytes that a rank sends on average, by theory."""
    return algorithm(name).total(_checked(p)) * n / p


def busiest_wire_bytes(name: str, n: float, p: int) -> float:
    """Bytes that the rank which sends most sends, by theory."""
    return algorithm(name).busiest(_checked(p)) * n


def bus_bandwidth(collective: str, n: float, p: int, seconds: float) -> float:
    """Bytes per second, as nccl-tests defines "busbw": comparable with a wire's speed for any p."""
    return n / seconds * _entry(_BUS, "collective", collective)(_checked(p))


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

    def predict(self, name: str, n: float, p: int) -> float:
        """Seconds that the algorithm `name` takes for n bytes on p ranks."""
        starts, volume = _queue(algorithm(name), _checked(p), self.one_machine)
        return starts * self.alpha + volume * n * self.beta

    def crossover(self, first: str, second: str, p: int) -> float | None:
        """Bytes at which both take equally long; None where one is never slower.

        ``crossover("tree_all_reduce", "ring_all_reduce", 8)``: below it, take the tree.
        """
        starts, volume = _queue(algorithm(first), _checked(p), self.one_machine)
        other_starts, other_volume = _queue(algorithm(second), p, self.one_machine)
        slope = (other_volume - volume) * self.beta
        n = (starts - other_starts) * self.alpha / slope if slope else 0.0
        return n if n > 0 else None


def _queue(entry: Algorithm, p: int, one_machine: bool) -> tuple[float, float]:
    """(messages, bytes / n) that are paid for one after the other."""
    if one_machine:
        return entry.messages(p), entry.total(p)
    return entry.rounds(p), entry.volume(p)


def fit(rows: Iterable[Mapping[str, Any]], *, one_machine: bool = False) -> CostModel:
    """Alpha and beta from measurements, by least squares on the *relative* error.

    On the absolute error the largest tensor would decide alone, and alpha would be noise.

    Args:
        rows: each with "algorithm", "bytes", "ranks" and "seconds", as `benchmark.measure` makes
            them. Rows of algorithms that the model does not know (torch's own) are left out.
        one_machine: what messages queue for; see `CostModel`. Try both: the error tells.
    """
    # Each row asks for alpha * x + beta * y = 1, where x and y are divided by the time measured.
    points = []
    for row in rows:
        if row["algorithm"] in ALGORITHMS and row["ranks"] > 1:
            p, seconds = row["ranks"], row["seconds"]
            starts, volume = _queue(ALGORITHMS[row["algorithm"]], p, one_machine)
            points.append((starts / seconds, volume * row["bytes"] / seconds))
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
    error = sum(abs(alpha * x + beta * y - 1) for x, y in points) / len(points)
    return CostModel(alpha, beta, one_machine, error)


def _checked(p: int) -> int:
    if p < 1:
        raise ValueError(f"p is {p}: it is the number of ranks, 1 or more")
    return p


def _entry(table: dict, what: str, name: str) -> Any:
    if name not in table:
        raise ValueError(f"{what} is {name!r}: known are {', '.join(sorted(table))}")
    return table[name]
