"""Pipeline schedules: for each rank, the list of what it does, in order.

A pipeline cuts the model into stages. The stage on one rank works on one micro-batch at a time,
and only the *order* of its work makes GPipe, 1F1B or a zero-bubble schedule. So a schedule is
data. The same lists are drawn, simulated (``pipeline_simulation.py``) and executed
(``pipeline.py``):

    Schedule.parse(["F0 F1 BW0 BW1",         # rank 0
                    "F0 BW0 F1 BW1"])        # rank 1

F   forward of a micro-batch through a stage
B   backward for the stage's input: what the stage before waits for
W   backward for the stage's weight matrices: nobody waits for it
BW  both at once, as ``loss.backward()`` does

A rank may hold several stages, its chunks: ``F3.1`` is micro-batch 3 in chunk 1. Chunk c of rank
r is stage c*w + r of w ranks (placement "loop"), or with two chunks stages r and 2w-1-r (placement
"v"), where the first rank also has the last stage.

The drawings below are made by ``pipeline_simulation.simulate``, with F = B = W = 1: a column is a
unit of time, small letters are chunk 1, a dot is idle time, and a BW is drawn as its two halves.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("F", "B", "W", "BW")


class Action(NamedTuple):
    """One piece of work of one rank."""

    kind: str
    micro_batch: int
    chunk: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch}" + (f".{self.chunk}" if self.chunk else "")

    @classmethod
    def parse(cls, text: str) -> Action:
        """``"BW3.1"`` → the whole backward of micro-batch 3 in chunk 1."""
        found = re.fullmatch(r"(F|BW|B|W)(\d+)(?:\.(\d+))?", text)
        if not found:
            raise ValueError(
                f"action {text!r} is not one: give F, B, W or BW, the micro-batch, and perhaps "
                "a dot and the chunk, as in F3 or BW0.1"
            )
        kind, micro_batch, chunk = found.groups()
        return cls(kind, int(micro_batch), int(chunk or 0))


@dataclass(frozen=True)
class Schedule:
    """Who does what in which order. ``ranks[r]`` are the actions of rank r."""

    name: str
    ranks: tuple[tuple[Action, ...], ...]
    num_micro_batches: int
    num_chunks: int = 1
    placement: str = "loop"

    def __post_init__(self) -> None:
        if self.placement not in ("loop", "v"):
            raise ValueError(f'placement={self.placement!r} is unknown: give "loop" or "v"')
        if self.placement == "v" and self.num_chunks != 2:
            raise ValueError(
                f'placement="v" needs 2 chunks in each rank, not num_chunks={self.num_chunks}'
            )

    @classmethod
    def parse(cls, rows: Sequence[str], *, placement: str = "loop") -> Schedule:
        """A schedule from one line of actions for each rank, in the form of the module's text."""
        ranks = tuple(tuple(Action.parse(word) for word in row.split()) for row in rows)
        actions = [action for row in ranks for action in row]
        if not actions:
            raise ValueError(f"a schedule of {len(rows)} ranks without an action: give some")
        micro_batches = 1 + max(action.micro_batch for action in actions)
        chunks = 1 + max(action.chunk for action in actions)
        return cls("mine", ranks, micro_batches, chunks, placement)

    @property
    def num_ranks(self) -> int:
        return len(self.ranks)

    @property
    def num_stages(self) -> int:
        return self.num_ranks * self.num_chunks

    def stage(self, rank: int, chunk: int = 0) -> int:
        """Position in the model of a rank's chunk: stage 0 has the embedding."""
        if self.placement == "v" and chunk == 1:
            return self.num_stages - 1 - rank
        return chunk * self.num_ranks + rank

    def where(self, stage: int) -> tuple[int, int]:
        """The rank that holds a stage, and which of its chunks that is."""
        chunk, rank = divmod(stage, self.num_ranks)
        return (self.num_ranks - 1 - rank, 1) if self.placement == "v" and chunk else (rank, chunk)

    def text(self) -> str:
        """One line a rank, as ``parse`` reads it."""
        return "\n".join(" ".join(map(str, row)) for row in self.ranks)


def numbered(pattern: Sequence[str]) -> tuple[Action, ...]:
    """Give actions their micro-batches: ``["F", "F", "B", "W"]`` → F0, F1, B0, W0.

    A word is an action without its number: ``F`` in chunk 0, ``F.1`` in chunk 1. All schedules here
    take the micro-batches of a chunk in order, so it is enough to count. A "W" is for the oldest B
    that has none yet.
    """
    counts: dict[tuple[bool, int], int] = {}
    waiting: deque[Action] = deque()
    actions = []
    for word in pattern:
        if word == "W":
            actions.append(waiting.popleft()._replace(kind="W"))
            continue
        kind, _, chunk = word.partition(".")
        key = (kind == "F", int(chunk or 0))
        number = counts[key] = counts.get(key, -1) + 1
        actions.append(Action(kind, number, key[1]))
        if kind == "B":
            waiting.append(actions[-1])
    return tuple(actions)


def check_micro_batches(needed: int, num_micro_batches: int, name: str, num_ranks: int) -> None:
    """Refuse sizes that are no sizes, and fewer micro-batches than a schedule needs."""
    for what, value in (("num_ranks", num_ranks), ("num_micro_batches", num_micro_batches)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{what}={value!r} is not allowed: give a whole number of 1 or more")
    if num_micro_batches < needed:
        raise ValueError(
            f"{name} on {num_ranks} ranks needs at least {needed} micro-batches, not "
            f"num_micro_batches={num_micro_batches}: split the batch further, or take gpipe"
        )


def gpipe(num_ranks: int, num_micro_batches: int) -> Schedule:
    """All forwards, then all backwards (Huang et al., 2018). Keeps every micro-batch's activations.

    Raises (as all schedules here): ValueError with both numbers where there are too few
    micro-batches.
    """
    w, m = num_ranks, num_micro_batches
    check_micro_batches(1, m, "gpipe", w)
    return Schedule("gpipe", tuple(numbered(["F"] * m + ["BW"] * m) for _ in range(w)), m)


def one_f_one_b(num_ranks: int, num_micro_batches: int) -> Schedule:
    """1F1B (PipeDream-Flush, Narayanan et al., 2021): as soon as it can, a rank goes backward.

    Rank r of w starts with w-1-r forwards more than backwards, so at most w-r micro-batches'
    activations live there.
    """
    w, m = num_ranks, num_micro_batches
    check_micro_batches(w, m, "1f1b", w)
    ranks = []
    for rank in range(w):
        warm_up = w - 1 - rank
        steady = ["F", "BW"] * (m - warm_up)
        ranks.append(numbered(["F"] * warm_up + steady + ["BW"] * warm_up))
    return Schedule("1f1b", tuple(ranks), m)


def interleaved(num_ranks: int, num_micro_batches: int, num_chunks: int = 2) -> Schedule:
    """Interleaved 1F1B (Megatron-LM, 2021): v small stages a rank, so the pipeline fills v times
    sooner. Micro-batches travel in groups of w, each group through all chunks of a rank.

    >>> print(simulate(interleaved(2, 2)).text())
    rank 0  F0 F1 f0 f1  .  . b0 w0  . b1 w1 B0 W0 B1 W1
    rank 1   . F0 F1 f0 b0 w0 f1 b1 w1 B0 W0 B1 W1  .  .
    """
    w, m, v = num_ranks, num_micro_batches, num_chunks
    check_micro_batches(w, m, "interleaved", w)
    if type(v) is not int or not 1 <= v <= 10:
        raise ValueError(f"num_chunks={v!r} is not allowed: give a whole number from 1 to 10")
    if m % w:
        raise ValueError(
            f"interleaved on {w} ranks needs a multiple of {w} micro-batches, not "
            f"num_micro_batches={m}: micro-batches travel in groups of one for each rank"
        )
    order = [chunk for _ in range(m // w) for chunk in range(v) for _ in range(w)]
    forwards = [f"F.{chunk}" for chunk in order]
    backwards = [f"BW.{v - 1 - chunk}" for chunk in order]
    ranks = []
    for rank in range(w):
        # Until the first gradient is back: the way to the last stage and back, in this rank's time
        warm_up = min(2 * (w - 1 - rank) + (v - 1) * w, m * v)
        steady = zip(forwards[warm_up:], backwards, strict=False)
        pattern = forwards[:warm_up] + [word for pair in steady for word in pair]
        ranks.append(numbered(pattern + backwards[m * v - warm_up :]))
    return Schedule("interleaved", tuple(ranks), m, v)


def zb_h1(num_ranks: int, num_micro_batches: int) -> Schedule:
    """ZB-H1 (Qi et al., 2023): 1F1B whose W waits, r micro-batches long in rank r.

    B alone is shorter than B and W, so gradients come back sooner, and the W that are left over
    fill the gaps at the end. At most w micro-batches' activations live in each rank: in rank 0
    as many as in 1F1B, in the others more. A W that waits counts as a whole one: it keeps the
    inputs of the stage's matrices and the gradients of their outputs.

    >>> print(simulate(zb_h1(3, 4)).text())
    rank 0  F0 F1 F2  .  . B0 W0 F3 B1 W1 B2 W2 B3 W3
    rank 1   . F0 F1  . B0 F2 B1 W0 F3 B2 W1 B3 W2 W3
    rank 2   .  . F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3
    """
    w, m = num_ranks, num_micro_batches
    check_micro_batches(w, m, "zb_h1", w)
    ranks = []
    for rank in range(w):
        warm_up, pattern = w - 1 - rank, []
        for i in range(m):  # the i-th backward
            if i + warm_up < m:
                pattern.append("F")
            pattern.append("B")
            if i >= rank:
                pattern.append("W")
        ranks.append(numbered(["F"] * warm_up + pattern + ["W"] * rank))
    return Schedule("zb_h1", tuple(ranks), m)


def zb_v(num_ranks: int, num_micro_batches: int) -> Schedule:
    """ZB-V (Qi et al., 2024): stages in the shape of a V; no bubble left where F = B = W.

    The first rank has the first *and* the last stage, so backward starts where forward began.

    >>> print(simulate(zb_v(2, 4)).text())
    rank 0  F0 F1 F2 f0 b0 w0 f1 b1 w1 F3 B0 W0 f2 b2 w2 B1 W1 f3 b3 w3 B2 W2 B3 W3  .
    rank 1   . F0 f0 F1 f1 b0 w0 F2 B0 W0 f2 b1 w1 F3 B1 W1 f3 b2 w2 B2 b3 B3 W2 w3 W3

    Put together from these pieces:

            rank 0             rank 1
    fill    F0 F1 F2           F0 f0 F1
    turn    f0 b0 w0 f1 b1 w1  f1 b0 w0
    steady  F3 B0 W0 f2 b2 w2  F2 B0 W0 f2 b1 w1 F3 B1 W1 f3 b2 w2
    rest    B1 W1 f3 b3 w3
    drain   B2 W2 B3 W3        B2 b3 B3 W2
    late                       w3 W3
    """
    w, m = num_ranks, num_micro_batches
    check_micro_batches(2 * w - 1, m, "zb_v", w)
    ranks = []
    for rank in range(w):
        behind = w - 1 - rank  # ranks further down the V
        # The first micro-batch goes down the V and up again: 2 * behind stages until it is back
        fill = ["F"] * (2 * behind + 1) + ["F.1", "F"] * rank
        turn = ["F.1", "B.1", "W"] * (behind + 1)
        num_forwards = 2 * behind + 1 + rank  # of chunk 0, in fill
        steady = ["F", "B", "W", "F.1", "B.1", "W"] * (m - num_forwards)
        rest = ["B", "W", "F.1", "B.1", "W"] * behind
        drain = ["B", "B.1"] * rank + ["B", "W"] * (behind + 1)
        late = ["W"] * (2 * rank)  # those that gave way to a B in drain
        ranks.append(numbered(fill + turn + steady + rest + drain + late))
    return Schedule("zb_v", tuple(ranks), m, 2, "v")


def dual_pipe_v(num_ranks: int, num_micro_batches: int) -> Schedule:
    """DualPipeV (DeepSeek, 2025): DualPipe folded into a V. In the steady state each forward
    stands beside a backward of the *other* chunk, so that on a GPU the one's communication can
    hide behind the other's computation. Here the two simply follow each other.

    >>> print(simulate(dual_pipe_v(2, 4)).text())
    rank 0  F0 F1 F2 f0 b0 w0 f1 F3 b1 w1 f2 B0 W0 b2 w2 f3  . B1 W1 b3 w3 B2 W2 B3 W3
    rank 1   . F0 f0 F1 f1 F2 b0 w0 f2 B0 W0 F3 b1 w1 f3 B1 W1 b2 w2 B2 W2 b3 B3 w3 W3

    Put together from these pieces; "b1 w1" is one BW, except in turn, drain and late:

            rank 0             rank 1
    fill    F0 F1 F2 f0        F0 f0 F1 f1
    turn    b0 w0 f1
    steady  F3 b1 w1 f2 B0 W0  F2 b0 w0 f2 B0 W0 F3 b1 w1 f3 B1 W1
    rest    b2 w2 f3 B1 W1
    whole   b3 w3              b2 w2 B2 W2
    drain   B2 W2 B3           b3 B3
    late    W3                 w3 W3
    """
    w, m = num_ranks, num_micro_batches
    check_micro_batches(2 * w, m, "dual_pipe_v", w)
    ranks = []
    for rank in range(w):
        behind, so_far = w - 1 - rank, rank + 1  # ranks further down the V, and up to this one
        fill = ["F"] * (2 * behind) + ["F", "F.1"] * so_far
        turn = ["B.1", "W", "F.1"] * behind
        steady = ["F", "BW.1", "F.1", "BW"] * (m - 2 * w + so_far)
        rest = ["BW.1", "F.1", "BW"] * behind
        # So_far backwards of each chunk are left: the first half whole, the second without its W
        last = ["1", "0"] * so_far
        whole = [f"BW.{chunk}" for chunk in last[:so_far]]
        without = [f"B.{chunk}" for chunk in last[so_far:]]
        drain = without + ["W", "B"] * behind
        late = ["W"] * len(without)  # each W in drain made room for another B
        ranks.append(numbered(fill + turn + steady + rest + whole + drain + late))
    return Schedule("dual_pipe_v", tuple(ranks), m, 2, "v")


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zb_h1": zb_h1,
    "zb_v": zb_v,
    "dual_pipe_v": dual_pipe_v,
}


def make_schedule(name: str, num_ranks: int, num_micro_batches: int) -> Schedule:
    """The schedule of that name. ValueError: an unknown name, or too few micro-batches."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is unknown: choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name](num_ranks, num_micro_batches)
