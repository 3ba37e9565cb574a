"""The map of `low_latency`: two places for each pair of ranks, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.buffers import check_one_piece
from dlcourse.collectives.mailboxes import DTYPES, check_plain
from dlcourse.collectives.window import Group, Window, aligned

_NUMBER = 32  # bits below a call's number, in a flag and in a word
_COMBINE = 1 << 31  # set in the flag of a combine
_LAST = 1 << 31  # number of a call; before it repeats, a new window is made


class Places(Window):
    """Rows, or words with a number, of every pair of ranks, twice.

    Attributes:
        inbox_PKC: what came in this call.
        row_bytes: bytes of a row.
        call_number: of this call, in the upper half; `call_bits` says as well which call it is.
        address_of_x, halves_of_x: what is sent in this call; the second by 4 bytes.
        inbox_halves: the inbox by 4 bytes, (P, K * row_bytes / 4).
    """

    def __init__(
        self, capacity: int, width: int, dtype: torch.dtype, group: Group, *, ready: str
    ) -> None:
        _check(capacity, width, dtype, ready)
        _check_same(capacity, width, dtype, ready, group)
        self.capacity, self.width, self.dtype = capacity, width, dtype
        self.row_bytes, self.by_words = width * dtype.itemsize, ready == "payload"
        p, rows = dist.get_world_size(group), capacity * self.row_bytes
        # of one pair; and of one rank's inbox, which is a tensor where it holds rows
        self._place = 8 + 2 * rows if self.by_words else rows
        self._inbox = aligned(p * self._place)
        super().__init__(group, control_words=2 * p * p, data_bytes=2 * p * self._inbox)
        self._given = group
        self._calls, self._parity = 0, 0
        shape = (p, capacity, width)
        if self.by_words:
            self._words = [[self._view(k, to) for to in range(p)] for k in range(2)]
            own = torch.zeros(shape, dtype=dtype)
            self._inboxes = [own, own]
            self.inbox_halves = _halves(own).reshape(p, -1)
        else:
            self._inboxes = [
                torch.frombuffer(
                    self.memory,
                    dtype=dtype,
                    offset=self.start + self._offset(k, self.rank, 0),
                    count=p * capacity * width,
                ).view(shape)
                for k in range(2)
            ]
        self.inbox_PKC = self._inboxes[0]

    def next_call(self, x: Tensor) -> None:
        """A call begins, which sends rows of ``x``: what the last one returned ends here."""
        torch.autograd.graph.increment_version(self.inbox_PKC)
        self._calls += 1
        self._parity = self._calls % 2
        self.inbox_PKC = self._inboxes[self._parity]
        number = self._calls << _NUMBER
        self.call_number = np.uint64(number)
        self.call_bits = number | (_COMBINE if self.call.op == "combine" else 0)
        self.address_of_x = x.data_ptr()
        if self.by_words:
            self.halves_of_x = _halves(x)

    @property
    def usable(self) -> bool:
        """As a window; and numbers are left, and the default group is the same."""
        same = self._given is not None or self.group is dist.group.WORLD
        return same and super().usable and self._calls < _LAST - 2

    def _offset(self, parity: int, to: int, source: int) -> int:
        return (parity * self.size + to) * self._inbox + source * self._place

    # ------------------------------------------------------------------ rows and a flag

    def outbox(self, to: int) -> int:
        """The address of this rank's place at another."""
        return self.address + self._offset(self._parity, to, self.rank)

    def _flag(self, to: int, source: int) -> int:
        return self.control + (self._parity * self.size + to) * self.size + source

    def raise_flag(self, to: int, flag: int) -> None:
        """Tell a rank that all of this call is there."""
        self.words[self._flag(to, self.rank)] = flag

    def flag(self, source: int) -> int:
        """What a rank has told this one last in this place."""
        return self.words[self._flag(self.rank, source)]

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

    # ------------------------------------------------------------------ words

    def _view(self, parity: int, to: int) -> np.ndarray:
        offset = self.start + parity * self.size * self._inbox + to * self._inbox
        return np.ndarray(
            (self.size, self._place // 8), dtype=np.uint64, buffer=self.memory, offset=offset
        )

    def words_to(self, to: int) -> np.ndarray:
        """This rank's place at another, as uint64."""
        return self._words[self._parity][to][self.rank]

    def words_from(self, source: int) -> np.ndarray:
        """Another rank's place here."""
        return self._words[self._parity][self.rank][source]

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
        inside = 0 <= tensor.data_ptr() - self.address < 2 * self.size * self._inbox
        if inside and tensor.data_ptr() != self.inbox_PKC.data_ptr():
            raise ValueError(f"{name} lies where other ranks write: pass {name}.clone()")


def _halves(tensor: Tensor) -> np.ndarray:
    """A contiguous tensor as uint32, one after the other."""
    return tensor.detach().view(torch.int32).numpy().view(np.uint32).reshape(-1)


def _check(capacity: int, width: int, dtype: torch.dtype, ready: str) -> None:
    for name, value in (("capacity", capacity), ("width", width)):
        if type(value) is not int or not 1 <= value < _COMBINE:
            raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
    if ready not in ("flag", "payload"):
        raise ValueError(f"ready={ready!r}: choose 'flag' or 'payload'")
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
