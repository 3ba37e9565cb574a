"""The map of `low_latency`: two places for each pair of ranks, and what is refused."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from ctypes import memmove
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.buffers import check_member, check_one_piece, note_change
from dlcourse.collectives.mailboxes import DTYPES, check_plain
from dlcourse.collectives.window import Group, Window, aligned

_NUMBER = 32  # bits below a call's number, in a flag and in a word
_COMBINE = 1 << 31  # set in the flag of a combine
_TRIED = ("x86_64", "AMD64")
_LAST = 1 << 31  # number of a call; before it repeats, a new window is made


class Places(Window):
    """Rows, or words with a number, of every pair of ranks, twice.

    Attributes:
        row_bytes: bytes of a row.
        order: the ranks as they are served, the next one first and this one last.

    And of this call, since `next_call`:
        inbox_PKC: what came.
        call_bits: its number in the upper half, and in the lower half the bit that says which
            call it is; `call_number` is the first alone.
        address_of_x: what is sent.
        outbox: addresses of this rank's places at the others, by rank.
        flags: what the others have told this rank last in these places.
        words_to, words_from, halves_of_x, inbox_halves: the same by words of 8 and of 4 bytes.
    """

    def __init__(
        self, capacity: int, width: int, dtype: torch.dtype, group: Group, *, ready: str
    ) -> None:
        check_member(group)
        _check(capacity, width, dtype, ready)
        _check_same(capacity, width, dtype, ready, group)
        self.capacity, self.width, self.dtype = capacity, width, dtype
        self.row_bytes, self.by_words = width * dtype.itemsize, ready == "payload"
        p, rows = dist.get_world_size(group), capacity * self.row_bytes
        self._place_bytes = 8 + 2 * rows if self.by_words else rows  # of a pair
        self._inbox_bytes = aligned(p * self._place_bytes)
        super().__init__(group, control_words=2 * p * p, data_bytes=2 * p * self._inbox_bytes)
        self._given = group
        self.order = [*self.peers, self.rank]
        self._calls = 0
        with torch.inference_mode(False):  # they are there after it, too
            self._inboxes = [self._inbox_of(k) for k in range(2)]
        self._outboxes = [
            [self.address + self._offset(k, to, self.rank) for to in range(p)] for k in range(2)
        ]
        flags = self.words[self.control :]
        self._flags = [flags[(k * p + self.rank) * p :][:p] for k in range(2)]
        self._flag_words = [
            [self.control + (k * p + to) * p + self.rank for to in range(p)] for k in range(2)
        ]
        if self.by_words:
            self._words = [[self._words_of(k, to) for to in range(p)] for k in range(2)]
        self.inbox_PKC = self._inboxes[0]

    def next_call(self, x: Tensor) -> None:
        """A call begins, which sends rows of ``x``: what the last one returned ends here."""
        note_change(self.inbox_PKC)
        self._calls += 1
        parity = self._calls % 2
        self.inbox_PKC = self._inboxes[parity]
        self.outbox, self.flags = self._outboxes[parity], self._flags[parity]
        self._flag_word = self._flag_words[parity]
        self.call_bits = self._calls << _NUMBER | (_COMBINE if self.call.op == "combine" else 0)
        self.address_of_x = x.data_ptr()
        if self.by_words:
            self.call_number = np.uint64(self._calls << _NUMBER)
            self.words_to = [words[self.rank] for words in self._words[parity]]
            self.words_from = self._words[parity][self.rank]
            self.halves_of_x = _halves(x)
            self.inbox_halves = _halves(self.inbox_PKC).reshape(self.size, -1)

    @property
    def usable(self) -> bool:
        """As a window; and numbers are left, and the default group is the same."""
        same = self._given is not None or self.group is dist.group.WORLD
        return same and super().usable and self._calls < _LAST - 2

    def _offset(self, parity: int, to: int, source: int) -> int:
        return (parity * self.size + to) * self._inbox_bytes + source * self._place_bytes

    def _inbox_of(self, parity: int) -> Tensor:
        shape = (self.size, self.capacity, self.width)
        if self.by_words:  # rows are made of the words
            return torch.zeros(shape, dtype=self.dtype)
        offset = self.start + self._offset(parity, self.rank, 0)
        size = self.size * self.capacity * self.width
        rows = torch.frombuffer(self.memory, dtype=self.dtype, offset=offset, count=size)
        return rows.view(shape)

    def _words_of(self, parity: int, to: int) -> np.ndarray:
        """A rank's inbox as uint64, (P, words)."""
        offset, shape = (
            self.start + self._offset(parity, to, 0),
            (self.size, self._place_bytes // 8),
        )
        return np.ndarray(shape, dtype=np.uint64, buffer=self.memory, offset=offset)

    def rows_in_order(self, counts: Sequence[int]) -> Tensor:
        """The rows of the inbox, one rank's after the other's, in a tensor of their own."""
        rows_MC = self.inbox_PKC.new_empty(sum(counts), self.width)
        to, source = rows_MC.data_ptr(), self.inbox_PKC.data_ptr()
        for k, n in enumerate(counts):
            memmove(to, source + k * self.capacity * self.row_bytes, n * self.row_bytes)
            to += n * self.row_bytes
        return rows_MC

    # ------------------------------------------------------------------ flags

    def raise_flag(self, to: int, flag: int) -> None:
        """Tell a rank that all of this call is there."""
        self.words[self._flag_word[to]] = flag

    def rows_of(self, flag: int) -> int:
        """The rows that a flag tells of; -1 where it is of an earlier call.

        Raises:
            ValueError: it is of another kind of call.
        """
        rows = flag - self.call_bits
        if 0 <= rows <= self.capacity:
            return rows
        if flag >> _NUMBER < self._calls:
            return -1
        raise ValueError(
            f"{self.call.op} #{self.call.seq} meets another call in another rank: each dispatch "
            "is followed by its combine, in all ranks"
        )

    # ------------------------------------------------------------------ what is refused

    def check_dispatch(self, x_MC: Tensor, counts: Sequence[int]) -> list[int]:
        """Refuse rows or counts that cannot be; returns the counts."""
        sent = list(counts)
        if len(sent) != self.size or any(type(n) is not int or n < 0 for n in sent):
            raise ValueError(f"counts is {sent}: it needs {self.size} whole numbers from 0 on")
        self._check_tensor(x_MC, "x_MC", (sum(sent), self.width))
        if max(sent) > self.capacity:
            raise ValueError(
                f"counts is {sent} and capacity={self.capacity}: no rank can take more from one. "
                "Drop tokens, or make LowLatency with a larger capacity"
            )
        return sent

    def check_combine(self, y_PKC: Tensor) -> None:
        """Refuse what is not in the form of the inbox, or a combine without a dispatch."""
        self._check_tensor(y_PKC, "y_PKC", (self.size, self.capacity, self.width))
        if self._calls % 2 == 0:
            raise ValueError("combine without a dispatch before it: nothing is to be sent back")

    def check_back(self, back: list[int], sent: list[int]) -> None:
        """Refuse rows that are more or fewer than were sent."""
        if back != sent:
            raise ValueError(f"{back} rows came back of {sent} that were dispatched")

    def _check_tensor(self, tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
        check_plain(tensor, name)
        check_one_piece(tensor, self.group, name)
        if tuple(tensor.shape) != shape or tensor.dtype != self.dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}: it needs {self.dtype} "
                f"of shape {shape}"
            )
        inside = 0 <= tensor.data_ptr() - self.address < 2 * self.size * self._inbox_bytes
        if inside and tensor.data_ptr() != self.inbox_PKC.data_ptr():
            raise ValueError(f"{name} lies where other ranks write: pass {name}.clone()")


def _halves(tensor: Tensor) -> np.ndarray:
    """A contiguous tensor as uint32, one after the other."""
    return tensor.detach().view(torch.int32).numpy().view(np.uint32).reshape(-1)


def ready_ways() -> tuple[Literal["flag", "payload"], ...]:
    """How a receiver can tell on this machine that data is there: by payload on x86 alone."""
    return ("flag", "payload") if platform.machine() in _TRIED else ("flag",)


def _check(capacity: int, width: int, dtype: torch.dtype, ready: str) -> None:
    for name, value in (("capacity", capacity), ("width", width)):
        if type(value) is not int or not 1 <= value < _COMBINE:
            raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
    if ready not in ("flag", "payload"):
        raise ValueError(f"ready={ready!r}: choose 'flag' or 'payload'")
    if ready not in ready_ways():
        raise ValueError(
            f"ready='payload' on {platform.machine()}: 8 bytes of a vector store seen as a "
            f"whole were tried on {_TRIED[0]} only. Use ready='flag', which needs no such thing"
        )
    if ready == "payload" and width * dtype.itemsize % 4:
        raise ValueError(
            f"width={width} of {dtype} is {width * dtype.itemsize} bytes: by payload a row is sent "
            "by 4 bytes. Give a width that makes a multiple of 4, or ready='flag'"
        )


def _check_same(capacity: int, width: int, dtype: torch.dtype, ready: str, group: Group) -> None:
    given = torch.tensor([capacity, width, DTYPES.index(dtype), ready == "payload"])
    most, least = given.clone(), given.clone()
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=group)
    dist.all_reduce(least, op=dist.ReduceOp.MIN, group=group)
    if not most.equal(least):
        raise ValueError(
            "capacity, width, dtype or ready differs between ranks: give all of them the same"
        )
