"""Low latency: tokens go out before anybody knows how many will come. DeepEP's small mode.

Each rank keeps room for ``capacity`` rows from every rank, so that a row's place is known
without asking. What arrives says how many rows it is, in two ways to choose from:

    ready="flag"      rows   [ t t t t t t t t ]      flag  [ call 7 | 3 rows ]
    ready="payload"   words  [ 3 rows | 7 ] [ t | 7 ] [ t | 7 ] [ t | 7 ] ...

With a flag, data goes first and one word after it. With payload, there is one stream of words and
nothing after it: half of each word of 8 bytes is data, the other half the call's number. Who sees
the number in a word has its data, for a word is written as a whole. So no order of words is
needed at all, no bit pattern is forbidden, and no word needs to be reset. It costs twice the bytes
(NCCL calls this protocol LL).

When may a rank write into its place at another again? There are two places, used in turn. In call
n + 2 it writes where it wrote in call n. It has ended call n + 1, so it has the other's words of
call n + 1, which that rank wrote after it had done with what call n brought. No answer is needed;
and so **what a call returns is valid until the next call begins**, in this rank. Autograd refuses
to use it afterwards.

Order: a flag as `one_sided` says. By payload all stands on this: 8 aligned bytes are seen whole or
not at all. They are written by NumPy's loop, never by ``memcpy``, which may go byte by byte. x86
promises it of an instruction that stores 8 bytes, and of aligned stores of 16 where there is AVX;
the loop may store 16, 32 or 64, of which no manual says it, and no processor is known that tears
such words. So it is tried (``dlcourse bench experts --soak``), on x86 alone, and elsewhere refused.

Source: DeepSeek-AI, DeepEP (github.com/deepseek-ai/DeepEP), low-latency kernels; NCCL's
``prims_ll.h``.
Shape suffixes:
    M  tokens that this rank sends, by rank    P  ranks    K  capacity    C  width
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import memmove
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.places import Places


class LowLatency:
    """Room for a group to `dispatch` tokens to experts and to `combine` what they return.

    Args:
        capacity: rows from one rank to one other in a call, at most.
        width: elements of a row.
        dtype: of the elements.
        group: the ranks that take part, all on one machine; the default group if None.
        ready: how a rank knows that data has arrived: by a "flag", or by the "payload" itself.

    Raises:
        ValueError: in every rank, where they gave different arguments, or share no memory.
    """

    def __init__(
        self,
        capacity: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        group: dist.ProcessGroup | None = None,
        *,
        ready: Literal["flag", "payload"] = "flag",
    ) -> None:
        self._open = lambda: Places(capacity, width, dtype, group, ready=ready)
        self.places = self._open()
        self.sent: list[int] = []
        self.came: list[int] = []
        self.put, self.look = (put_rows, look_rows) if ready == "flag" else (put_words, look_words)

    def usable_places(self) -> Places:
        """The places; new ones, which all ranks open, where a call has failed."""
        if not self.places.usable:
            self.places = self._open()
        return self.places

    def dispatch(self, x_MC: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Send the first ``counts[0]`` rows to rank 0, the next ``counts[1]`` to rank 1, ...

        As a layer's ``exchange=``: low_latency_exchange.py.

        Returns:
            The rows that came, (P, K, C), where ``[k, :n]`` are from rank k; and each n. Valid
            until `combine` or the next `dispatch` begins.

        Raises:
            ValueError: arguments that cannot be. The other ranks raise too.
            RuntimeError: another rank has ended or failed, or did not come in the group's time.
        """
        places = self.usable_places()
        places.begin("dispatch", (x_MC,), x_MC.numel() * x_MC.itemsize)
        with places:
            self.sent = places.check_dispatch(x_MC, counts)
            starts = [sum(self.sent[:k]) for k in range(places.size)]
            self.came = self.exchange(x_MC, starts, self.sent)
        return places.inbox_PKC, self.came

    def combine(self, y_PKC: Tensor) -> Tensor:
        """Send every row back to where it came from.

        Args:
            y_PKC: for each row that `dispatch` returned one in the same place.

        Returns:
            A row for each that this rank has dispatched, in that order, (M, C).
        """
        places = self.places
        places.begin("combine", (y_PKC,), sum(self.came) * places.row_bytes)
        with places:
            places.check_combine(y_PKC)
            starts = [k * places.capacity for k in range(places.size)]
            back = self.exchange(y_PKC, starts, self.came)
            places.check_back(back, self.sent)
            return places.rows_in_order(back)

    def exchange(self, x: Tensor, starts: Sequence[int], rows: Sequence[int]) -> list[int]:
        """Put rows for each rank, wait for those of each; returns how many came. Inside a call."""
        places = self.places
        places.next_call(x)
        places.call.sent = (sum(rows) - rows[places.rank]) * places.row_bytes
        self.put(places, starts, rows)
        came = [-1] * places.size
        while waits := [k for k, n in enumerate(came) if n < 0]:
            for source in waits:
                came[source] = self.look(places, source)
            if max(came[source] for source in waits) < 0:
                places.pause(waits)
        places.fence()  # the flags before the data
        return came


def put_rows(places: Places, starts: Sequence[int], rows: Sequence[int]) -> None:
    """All data, then all flags."""
    for to in places.order:
        source = places.address_of_x + starts[to] * places.row_bytes
        memmove(places.outbox[to], source, rows[to] * places.row_bytes)
    places.fence()
    for to in places.order:
        places.raise_flag(to, places.call_bits | rows[to])


def look_rows(places: Places, source: int) -> int:
    """How many rows have come from a rank; -1 if it has not raised its flag in this call."""
    return places.rows_of(places.flags[source])


def put_words(places: Places, starts: Sequence[int], rows: Sequence[int]) -> None:
    """Data and number in each word; the first word says how many there are."""
    row = places.row_bytes // 4
    for to in places.order:
        words, start, n = places.words_to[to], starts[to] * row, rows[to] * row
        data = places.halves_of_x[start : start + n]  # uint32
        np.bitwise_or(data, places.call_number, out=words[1 : 1 + n])
        words[0] = places.call_bits | rows[to]


def look_words(places: Places, source: int) -> int:
    """How many rows have come from a rank; -1 if a word is missing."""
    words = places.words_from[source]
    rows = places.rows_of(int(words[0]))
    if rows > 0:
        n = rows * places.row_bytes // 4
        data = words[1 : 1 + n]
        if data.min() < places.call_number:  # the number is the upper half, and only grows
            return -1
        places.fence()
        places.inbox_halves[source, :n] = data  # the lower half
    return rows
