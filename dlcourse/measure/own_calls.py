"""Collectives that do not pass torch: they tell of themselves here.

Torch's own collectives are seen in its dispatcher and in its flight recorder. One that only copies
memory passes neither. What is told here between `begin` and `end` gives the recorder its bytes
and times, and the engine what a rank has called and where it waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

KEPT = 8  # calls of each group that are remembered


@dataclass(slots=True, eq=False)
class OwnCall:
    """One call of a collective.

    Attributes:
        op: its name in messages; records count it as the ``collective`` that it is.
        members: the ranks of its group.
        seq: its number among these calls of the group, from 1 on.
        nbytes: S, the whole buffer that this rank brings.
        shape, dtype: of what it sends.
        sent: bytes that leave this rank, once they are known.
    """

    op: str
    group: str
    members: Sequence[int]
    seq: int
    nbytes: int
    shape: torch.Size
    dtype: torch.dtype
    sent: int | None = None
    done: bool = False
    collective: str = "all_to_all"


class Listener(Protocol):
    """The recorder."""

    def own_begin(self, call: OwnCall, tensors: Sequence[Tensor]) -> None:
        """A call begins."""

    def own_end(self, call: OwnCall) -> None:
        """It has ended, well or not."""


listeners: list[Listener] = []  # the last one is told: a recorder inside another
calls: dict[str, deque[OwnCall]] = {}  # group -> the last of its calls
members: dict[str, Sequence[int]] = {}  # group -> its ranks, before its first call as well
_waiting: list[OwnCall] = []


def join(group: str, ranks: Sequence[int]) -> None:
    """The ranks of a group can make such calls from now on."""
    members[group] = ranks
    calls.setdefault(group, deque(maxlen=KEPT))


def next_seq(group: str) -> int:
    """The number of the next call in a group."""
    last = calls.get(group)
    return last[-1].seq + 1 if last else 1


def begin(
    op: str,
    group: str,
    tensors: Sequence[Tensor],
    nbytes: int,
    collective: str = "all_to_all",
) -> OwnCall:
    """A call begins, with what it sends first among its tensors."""
    last, what = calls.get(group), tensors[0]
    if last is None:
        raise ValueError(f"group {group} is no more: its ranks have been joined anew. Use the new")
    call = OwnCall(
        *(op, group, members[group], next_seq(group), nbytes, what.shape, what.dtype),
        collective=collective,
    )
    last.append(call)
    if listeners:
        listeners[-1].own_begin(call, tensors)
    return call


def waits(call: OwnCall) -> None:
    """Its process does nothing but wait for other ranks, until the call ends."""
    _waiting[:] = [call]


def waiting() -> OwnCall | None:
    """The call in which this process waits."""
    return next(iter(_waiting), None)


def end(call: OwnCall) -> None:
    """It has ended, well or not."""
    call.done = True
    _waiting.clear()
    if listeners:
        listeners[-1].own_end(call)


def forget() -> None:
    """The process group was made anew."""
    calls.clear()
    members.clear()
    _waiting.clear()
