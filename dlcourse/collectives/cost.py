"""Alpha-beta: what a collective costs, before it is run.

A message of b bytes takes alpha + b * beta seconds: alpha to get going, beta for each byte.
So an algorithm costs rounds * alpha + (bytes one after the other) * beta, and the whole table of
algorithms is four columns of numbers. Two more are needed to compare machines: what all wires
carry together, and what the busiest rank sends.

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
        total: bytes that all ranks send together, divided by n.
        busiest: bytes that the rank which sends most sends, divided by n.
    """

    collective: str
    rounds: Count
    volume: Count
    total: Count
    busiest: Count


def _log2(p: int) -> int:
    """Rounds of a tree over p ranks: log2(p), rounded up."""
    return (p - 1).bit_length()


def _shared(collective: str, times: int, rounds: Count) -> Algorithm:
    """All ranks send the same: a p-th part of n to each other rank, `times` times."""

    def each(p: int) -> float:
        return times * (p - 1) / p

    return Algorithm(collective, rounds, volume=each, total=lambda p: p * each(p), busiest=each)


ALGORITHMS: dict[str, Algorithm] = {
    "ring_all_reduce": _shared("all_reduce", 2, lambda p: 2 * (p - 1)),
    "ring_reduce_scatter": _shared("reduce_scatter", 1, lambda p: p - 1),
    "ring_all_gather": _shared("all_gather", 1, lambda p: p - 1),
    "direct_all_reduce": _shared("all_reduce", 2, lambda p: 2 * (p > 1)),
    "direct_reduce_scatter": _shared("reduce_scatter", 1, lambda p: p > 1),
    "direct_all_gather": _shared("all_gather", 1, lambda p: p > 1),
    "direct_all_to_all": _shared("all_to_all", 1, lambda p: p > 1),
    "tree_broadcast": Algorithm("broadcast", _log2, _log2, lambda p: p - 1, _log2),
    "tree_reduce": Algorithm("reduce", _log2, _log2, lambda p: p - 1, lambda p: p > 1),
    "tree_all_reduce": Algorithm(
        "all_reduce",
        rounds=lambda p: 2 * _log2(p),
        volume=lambda p: 2 * _log2(p),
        total=lambda p: 2 * (p - 1),
        busiest=_log2,
    ),
    "naive_all_reduce": Algorithm(
        "all_reduce",
        rounds=lambda p: 2 * (p - 1),  # rank 0 serves one after the other
        volume=lambda p: 2 * (p - 1),
        total=lambda p: 2 * (p - 1),
        busiest=lambda p: p - 1,
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
    """What a message costs on one machine.

    Attributes:
        alpha: seconds to start a message.
        beta: seconds for each byte; 1 / beta is the bandwidth.
        one_wire: all ranks share one wire, so that their bytes queue behind one another. So it is
            on one machine, where every message goes through the same cores and memory. In a
            cluster each rank has a wire of its own.
        error: mean relative error on the measurements that it was fitted to, 0.1 for 10%.
    """

    alpha: float
    beta: float
    one_wire: bool = False
    error: float = 0.0

    def predict(self, name: str, n: float, p: int) -> float:
        """Seconds that the algorithm `name` takes for n bytes on p ranks."""
        entry = algorithm(name)
        queue = _queue(entry, self.one_wire)
        return entry.rounds(_checked(p)) * self.alpha + queue(p) * n * self.beta

    def crossover(self, first: str, second: str, p: int) -> float | None:
        """Bytes at which both take equally long; None where one is faster at every size.

        ``crossover("tree_all_reduce", "ring_all_reduce", 8)``: below it, take the tree.
        """
        one, other = algorithm(first), algorithm(second)
        rounds = one.rounds(_checked(p)) - other.rounds(p)
        queue = _queue(other, self.one_wire)(p) - _queue(one, self.one_wire)(p)
        n = rounds * self.alpha / (queue * self.beta) if queue * self.beta else 0.0
        return n if n > 0 else None


def _queue(entry: Algorithm, one_wire: bool) -> Count:
    """Bytes that go over a wire one after the other, divided by n."""
    return entry.total if one_wire else entry.volume


def fit(rows: Iterable[Mapping[str, Any]], *, one_wire: bool = False) -> CostModel:
    """Alpha and beta from measurements, by least squares on the *relative* error.

    On the absolute error the largest tensor would decide alone, and alpha would be noise.

    Args:
        rows: each with "algorithm", "bytes", "ranks" and "seconds", as `benchmark.measure` makes
            them. Rows of algorithms that the model does not know (torch's own) are left out.
        one_wire: which machine to assume; see `CostModel`. Try both: the error tells.
    """
    # Each row asks for alpha * x + beta * y = 1, where x and y are divided by the time measured.
    points = []
    for row in rows:
        if row["algorithm"] in ALGORITHMS and row["ranks"] > 1:
            entry, p, seconds = ALGORITHMS[row["algorithm"]], row["ranks"], row["seconds"]
            queue = _queue(entry, one_wire)(p) * row["bytes"]
            points.append((entry.rounds(p) / seconds, queue / seconds))
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
    return CostModel(alpha, beta, one_wire, error)


def _checked(p: int) -> int:
    if p < 1:
        raise ValueError(f"p is {p}: it is the number of ranks, 1 or more")
    return p


def _entry(table: dict, what: str, name: str) -> Any:
    if name not in table:
        raise ValueError(f"{what} is {name!r}: known are {', '.join(sorted(table))}")
    return table[name]
