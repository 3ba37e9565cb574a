"""Bytes that a rank sends: for a collective, for one algorithm of it, for a step of ZeRO.

``nbytes`` is always the size of the whole buffer, S, as nccl-tests counts: the input of an
all-reduce or reduce-scatter, the *output* of an all-gather, what one rank sends in an all-to-all
(the piece for itself included). p is the number of ranks, ``world_size``.

Sources: Patarasu and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
2009 (the ring, and that nothing sends less); Thakur, Rabenseifner and Gropp, "Optimization of
Collective Communication Operations in MPICH", 2005 (trees); nccl-tests, doc/PERFORMANCE.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import comb
from typing import Any

from dlcourse.formulas.sizes import check_size
from dlcourse.formulas.states import check_stage, check_world_size

_SENDING = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"})
_SENDING |= {"reduce", "gather", "scatter", "send", "recv", "barrier"}
Count = Callable[[int], float]  # of the number of ranks


def wire_bytes(op: str, nbytes: float, world_size: int) -> float:
    """Bytes that one rank sends for a collective, in theory (average over the group).

    Args:
        op: torch's name of the collective: "all_reduce", "all_gather", ...; "" for none.
        nbytes: S, bytes of the whole buffer. For all_gather and gather this is the output, for
            reduce_scatter, scatter and all_to_all the input; for the others the tensor itself.
        world_size: p, ranks in the group.

    Raises:
        ValueError: a name that is none of these, or no rank.

    Returns:
        all_reduce 2(p-1)/p S; all_gather, reduce_scatter, all_to_all, broadcast and reduce
        (p-1)/p S (ring or pipeline: the least that any algorithm can send); gather and scatter
        (p-1)/p^2 S; send S; recv, barrier 0.
    """
    if op and op not in _SENDING:  # "allreduce" would be taken for half of it
        raise ValueError(f"op={op!r} is unknown: give one of {', '.join(sorted(_SENDING))}")
    p = check_world_size(world_size)
    if p == 1 or op in ("", "barrier", "recv"):
        return 0.0
    if op == "send":
        return float(nbytes)
    if op == "all_reduce":
        return 2 * share_of_others(p) * nbytes
    if op in ("gather", "scatter"):
        return share_of_others(p) / p * nbytes
    return share_of_others(p) * nbytes


def share_of_others(world_size: Any) -> Any:
    """The share of a buffer, cut into p equal parts, that is not one's own: (p - 1) / p.

    Takes arrays of NumPy too, for the planner's many layouts at once.
    """
    return (world_size - 1) / world_size


def pair_crossings(
    first: str, second: str, *, tokens: int, width: int, hidden: int, itemsize: int = 4
) -> dict[str, tuple[str, int]]:
    """What two matrices in a row send if each is cut: x (width) -> hidden -> y (width).

    x and y are whole in every rank. Leaving a matrix cut by "columns" each rank has a part of the
    output, by "rows" a summand of it; backward has a summand of the input's gradient before
    columns, and a part of it before rows. Columns, then rows need nothing in the middle.

    Args:
        first, second: "columns" or "rows".
        tokens: rows of x.
        itemsize: bytes of a number.

    Returns:
        "middle" and "end" of forward, "middle_backward" and "start_backward": the collective
        and the bytes of its whole buffer, as ``wire_bytes`` takes them; ("", 0) for none.

    Source: Shoeybi et al., "Megatron-LM", 2019, section 3.
    """
    after = {"columns": "all_gather", "rows": "all_reduce"}
    before = {"columns": "all_reduce", "rows": "all_gather"}
    x, middle = itemsize * tokens * width, itemsize * tokens * hidden
    nothing = (first, second) == ("columns", "rows")
    return {
        "middle": ("", 0) if nothing else (after[first], middle),
        "end": (after[second], x),
        "middle_backward": ("", 0) if nothing else (before[second], middle),
        "start_backward": (before[first], x),
    }


def block_bytes(
    *, layers: int, tokens: int, width: int, world_size: int, itemsize: int = 4
) -> float:
    """Bytes that one rank sends in a step for a GPT's blocks under tensor parallelism.

    Four all-reduces a layer, of tokens x width numbers: leaving attention and the MLP in forward,
    entering each in backward.
    """
    return 4 * layers * wire_bytes("all_reduce", itemsize * tokens * width, world_size)


@dataclass(frozen=True)
class Algorithm:
    """How one algorithm does one collective.

    Attributes:
        collective: what it does, as torch.distributed names it.
        rounds: messages that wait for one another.
        volume: bytes in those, divided by nbytes.
        messages: messages that all ranks send together.
        total: bytes that all ranks send together, divided by nbytes.
        busiest: bytes that the rank which sends most sends, divided by nbytes.
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


def _even(collective: str, rounds: Count) -> Algorithm:
    """All ranks send the same, a p-th part of the buffer to each other one: the least there is."""
    each = partial(wire_bytes, collective, 1)
    times = 2 if collective == "all_reduce" else 1  # a reduce-scatter, then an all-gather

    def messages(p: int) -> float:
        return times * p * (p - 1)

    return Algorithm(collective, rounds, each, messages, _others(times), each)


ALGORITHMS: dict[str, Algorithm] = {
    "ring_all_reduce": _even("all_reduce", rounds=_others(2)),
    "ring_reduce_scatter": _even("reduce_scatter", rounds=_others()),
    "ring_all_gather": _even("all_gather", rounds=_others()),
    "direct_all_reduce": _even("all_reduce", rounds=_any(2)),
    "direct_reduce_scatter": _even("reduce_scatter", rounds=_any()),
    "direct_all_gather": _even("all_gather", rounds=_any()),
    "direct_all_to_all": _even("all_to_all", rounds=_any()),
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


def algorithm(name: str) -> Algorithm:
    """The entry of ``ALGORITHMS``; a ValueError for a name that is not there."""
    if name not in ALGORITHMS:
        known = ", ".join(sorted(ALGORITHMS))
        raise ValueError(f"algorithm is {name!r}: known are {known}")
    return ALGORITHMS[name]


def algorithm_bytes(name: str, nbytes: float, world_size: int) -> float:
    """Bytes that a rank sends on average with one of ``ALGORITHMS``."""
    return algorithm(name).total(check_world_size(world_size)) * nbytes / world_size


def busiest_rank_bytes(name: str, nbytes: float, world_size: int) -> float:
    """Bytes that the rank which sends most sends with one of ``ALGORITHMS``."""
    return algorithm(name).busiest(check_world_size(world_size)) * nbytes


def zero_bytes(
    parameter_bytes: float, *, world_size: int, stage: int, accumulate: int = 1
) -> float:
    """Bytes that one rank sends in a step of ZeRO; stage 0 is data parallelism.

    Stages 0 and 1 reduce-scatter gradients and all-gather parameters once (that is what an
    all-reduce is). Stage 2 reduces the gradients of every micro-batch; stage 3 does that too, and
    gathers parameters twice for each, for forward and for backward.

    Args:
        parameter_bytes: of the whole model, in the type that is sent.

    Source: Rajbhandari et al., "ZeRO", SC 2020, section 7.
    """
    check_stage(world_size=world_size, stage=stage)
    check_size("accumulate", accumulate)
    calls = {0: 2, 1: 2, 2: accumulate + 1, 3: 3 * accumulate}[stage]
    return calls * wire_bytes("reduce_scatter", parameter_bytes, world_size)


def expert_trip_bytes(
    tokens: int, *, width: int, top_k: int, world_size: int, itemsize: int = 4
) -> float:
    """Bytes that one rank sends to others to bring its tokens to their experts, once.

    Combine sends as many, and backward both again: four such trips a layer and step. Every rank is
    equally likely for a token; then a share of (p-1)/p of the copies leaves.

    Args:
        tokens: N, of this rank.
        width: C, numbers of a token.
        top_k: K, experts of a token.
        world_size: p, ranks that share the experts.
        itemsize: bytes of a number.
    """
    return wire_bytes("all_to_all", tokens * top_k * width * itemsize, world_size)


def distinct_ranks(num_experts: int, top_k: int, world_size: int) -> float:
    """In how many ranks the K experts of a token are, on average: p (1 - C(E-e, K) / C(E, K)).

    Where a token goes to a rank once though two experts there want it, K becomes this: the least
    that dispatch can send. Any K of the E experts are equally likely; e = E/p are in one rank, and
    C(E-e, K) of C(E, K) choices have none of them.

    Source: counting; DeepSeek-V3, 2024, section 3.2.2, keeps it below 4 nodes by its router.

    Raises:
        ValueError: ranks that do not divide the experts, or a token that uses more than all.
    """
    if world_size < 1 or num_experts % world_size or not 1 <= top_k <= num_experts:
        raise ValueError(
            f"num_experts={num_experts}, top_k={top_k}, world_size={world_size}: give ranks that "
            "divide the experts, and a token 1 to all of them"
        )
    others = num_experts - num_experts // world_size
    return world_size * (1 - comb(others, top_k) / comb(num_experts, top_k))


def count_bytes(num_experts: int, world_size: int) -> float:
    """Bytes that one rank sends so that all know who sends whom how many: E + 3 int64 to each."""
    return wire_bytes("all_gather", 8 * (num_experts + 3) * world_size, world_size)
