"""Collectives that do not pass torch: they tell of themselves here.

Torch's own collectives are seen in torch's dispatcher and in its flight recorder. One that only
copies memory passes neither. Between `begin` and `end` it is in this list, from which the recorder
takes its bytes and times, and the engine where a rank waits and what it has called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

KEPT = 8  # calls of each group that are remembered


@dataclass(slots=True, eq=False)
class OwnCall:
    """One call of a collective.

    Attributes:
        op: what it is called in records and messages.
        seq: its number in its group, from 1 on.
        nbytes: S, the whole buffer that this rank brings.
        shape, dtype: of what it sends.
    """

    op: str
    group: str
    ranks: Sequence[int]
    seq: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    done: bool = False


class Listener(Protocol):
    """The recorder."""

    def own_begin(self, call: OwnCall, tensors: Sequence[Tensor]) -> None:
        """A call begins."""

    def own_end(self, call: OwnCall) -> None:
        """It has ended, or failed."""


listeners: list[Listener] = []  # the last one is told: a recorder inside another
calls: dict[str, deque[OwnCall]] = {}  # group -> the last of its calls
members: dict[str, Sequence[int]] = {}  # group -> its ranks, before its first call as well
_waiting: list[OwnCall] = []


def join(group: str, ranks: Sequence[int]) -> None:
    """All ranks of a group can make such calls from now on."""
    members[group] = ranks
    calls.setdefault(group, deque(maxlen=KEPT))


def begin(op: str, group: str, tensors: Sequence[Tensor]) -> OwnCall:
    """A call begins, with what it sends first among its tensors."""
    last = calls[group]
    what = tensors[0]
    call = OwnCall(
        op,
        group,
        members[group],
        last[-1].seq + 1 if last else 1,
        what.nbytes,
        tuple(what.shape),
        str(what.dtype).removeprefix("torch."),
    )
    last.append(call)
    if listeners:
        listeners[-1].own_begin(call, tensors)
    return call


def waits(call: OwnCall) -> None:
    """Its process does nothing but wait for others, until the call ends."""
    _waiting[:] = [call]


def waiting() -> OwnCall | None:
    """The call in which this process waits."""
    return _waiting[0] if _waiting else None


def end(call: OwnCall, *, failed: bool = False) -> None:
    """It has ended. One that failed stays open for who asks."""
    call.done = not failed
    _waiting.clear()
    if listeners:
        listeners[-1].own_end(call)


def forget() -> None:
    """The process group was made anew."""
    calls.clear()
    members.clear()
    _waiting.clear()
