"""What lesson 01 asks before it measures: the formula of each answer, for four ranks."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.figures.collectives import IMPOSED
from dlcourse.formulas.traffic import busiest_rank_bytes, wire_bytes

RANKS, BUFFER = 4, 4 * 2**20


def naive_bytes() -> float:
    """The whole sum to each of the others."""
    return busiest_rank_bytes("naive_all_reduce", BUFFER, RANKS)


def ring_bytes() -> float:
    """2 (p - 1) chunks of a p-th of the buffer."""
    return wire_bytes("all_reduce", BUFFER, RANKS)


def ring_over_tree() -> float:
    """At 400 bytes, with the imposed times."""
    return _over("ring", "tree", 400)


def tree_over_ring() -> float:
    """At 128 kB, with the imposed times."""
    return _over("tree", "ring", 128_000)


def scatter_bytes() -> float:
    """Of the algorithm: half of an all-reduce of 1 MiB."""
    return wire_bytes("reduce_scatter", 2**20, RANKS)


def _over(first: str, second: str, nbytes: int) -> float:
    one, other = (IMPOSED.predict(f"{n}_all_reduce", nbytes, RANKS) for n in (first, second))
    return one / other


PREDICTIONS = {
    "01.naive": Asked(naive_bytes, reason="reason.naive", unit="bytes"),
    "01.ring": Asked(ring_bytes, reason="reason.ring", unit="bytes"),
    "01.small": Asked(ring_over_tree, reason="reason.small", unit="×"),
    "01.large": Asked(tree_over_ring, reason="reason.large", unit="×"),
    "01.scatter": Asked(scatter_bytes, reason="reason.scatter", unit="bytes"),
}
