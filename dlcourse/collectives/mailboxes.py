"""The map of `one_sided`: for each pair of ranks a row of slots, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import memmove
from itertools import accumulate
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.buffers import check_all_to_all, check_member
from dlcourse.collectives.window import LINE, Group, Window

SLOTS = 2  # of a pair: one is filled while the other is emptied
CHUNK = 1 << 17  # bytes of a slot: fits into a core's cache with what is copied
MOST = 1 << 26  # bytes of all slots: among many ranks they are smaller
DTYPES = sorted({x for x in vars(torch).values() if isinstance(x, torch.dtype)}, key=str)
_NUMBERS = {dtype: number for number, dtype in enumerate(DTYPES)}


class Parts:
    """The parts of a tensor, one for each rank of the group, as bytes in memory.

    Attributes:
        addresses, nbytes: of each rank's part.
        done: bytes of each that have been put, or taken.
        ranks: whose part is not done.
    """

    __slots__ = ("addresses", "done", "dtype", "nbytes", "ranks")

    def __init__(self, tensor: Tensor, rows: Sequence[int], ranks: list[int]) -> None:
        self.dtype, self.ranks = tensor.dtype, [*ranks]
        row_bytes = tensor.nbytes // len(tensor) if tensor.numel() else 0
        self.nbytes = [n * row_bytes for n in rows]
        self.addresses = [*accumulate(self.nbytes, initial=tensor.data_ptr())]
        self.done = [0] * len(rows)

    def next_chunk(self, rank: int, chunk: int) -> tuple[int, int]:
        """Address and bytes of what is next of a rank's part, which then counts as done."""
        done = self.done[rank]
        nbytes = min(self.nbytes[rank] - done, chunk)
        self.done[rank] = done + nbytes
        return self.addresses[rank] + done, nbytes

    def drop_done(self, ranks: Sequence[int]) -> None:
        """Take those of these ranks out of ``ranks`` whose part is done."""
        for rank in ranks:
            if self.done[rank] == self.nbytes[rank]:
                self.ranks.remove(rank)


class Mailboxes(Window):
    """Slots of every pair of ranks, `SLOTS` of them, used in turn.

    Attributes:
        put: how many slots each rank has filled for this one, by its number.
        taken: how many each has emptied of those that this one filled.
        num_put, num_taken: the same counts of what this rank has done.
        chunk: bytes of a slot, less a header of a cache line.
    """

    def __init__(self, group: Group) -> None:
        p = dist.get_world_size(group)
        self.chunk = chunk_bytes(p)
        self._slot_bytes = LINE + self.chunk
        slots = p * p * SLOTS
        super().__init__(group, control_words=2 * p * p, data_bytes=slots * self._slot_bytes)
        self.num_put, self.num_taken = [0] * p, [0] * p
        first, mine = self.control, range(self.rank * p, (self.rank + 1) * p)
        self.put = self.words[first + mine.start : first + mine.stop]
        self._put_word = [first + to * p + self.rank for to in range(p)]
        first += p * p
        self.taken = self.words[first + mine.start : first + mine.stop]
        self._taken_word = [first + source * p + self.rank for source in range(p)]
        self._slots_to = [self._slots(to * p + self.rank) for to in range(p)]
        self._slots_from = [self._slots(self.rank * p + source) for source in range(p)]

    def _slots(self, pair: int) -> list[tuple[int, int]]:
        """Of each slot of a pair: the address of its data, and the number of its header's word."""
        offsets = [(pair * SLOTS + k) * self._slot_bytes for k in range(SLOTS)]
        return [(self.address + at + LINE, (self.start + at) // 8) for at in offsets]

    def next_to(self, to: int) -> tuple[int, int]:
        """The next slot for a rank."""
        return self._slots_to[to][self.num_put[to] % SLOTS]

    def next_from(self, source: int) -> tuple[int, int]:
        """The next slot from a rank."""
        return self._slots_from[source][self.num_taken[source] % SLOTS]

    def tell_put(self, to: int) -> None:
        """The flag: one more slot for this rank is full."""
        self.num_put[to] = self.words[self._put_word[to]] = self.num_put[to] + 1

    def tell_taken(self, source: int) -> None:
        """One more slot from this rank is free."""
        self.num_taken[source] = self.words[self._taken_word[source]] = self.num_taken[source] + 1

    # ------------------------------------------------------------------ what is sent

    def parts(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Sequence[int] | None,
        input_split_sizes: Sequence[int] | None,
    ) -> tuple[Parts, Parts]:
        """What is to be put for and taken from each other rank; the own part is copied."""
        check_plain(input, "input")
        check_plain(output, "output")
        sent, expected = check_all_to_all(
            output, input, output_split_sizes, input_split_sizes, self.size, self.group
        )
        leaving, arriving = Parts(input, sent, self.peers), Parts(output, expected, self.peers)
        own = leaving.nbytes[self.rank]
        self.call.sent = input.nbytes - own
        memmove(arriving.addresses[self.rank], leaving.addresses[self.rank], own)
        return leaving, arriving

    def write_header(self, word: int, parts: Parts, to: int) -> None:
        """Before a part's first bytes: how many there are, of which type."""
        self.words[word], self.words[word + 1] = parts.nbytes[to], _NUMBERS[parts.dtype]

    def check_header(self, word: int, parts: Parts, source: int) -> None:
        """Refuse a part that is not what this rank expects."""
        nbytes, number = self.words[word], self.words[word + 1]
        if nbytes != parts.nbytes[source] or number != _NUMBERS[parts.dtype]:
            raise ValueError(self._unlike(parts, source, nbytes, DTYPES[number]))

    def _unlike(self, parts: Parts, source: int, nbytes: int, dtype: torch.dtype) -> str:
        who = self.names([source])
        return (
            f"output_split_sizes makes this rank expect {parts.nbytes[source]} bytes of "
            f"{parts.dtype} from {who}, which sends {nbytes} of {dtype}: what one sends the "
            "other must expect. Call exchange_counts first"
        )


def chunk_bytes(num_ranks: int) -> int:
    """Bytes of a slot among so many ranks: whole cache lines, so that headers lie at words."""
    room = MOST // (SLOTS * num_ranks**2) // LINE * LINE
    return max(1 << 12, min(CHUNK, room))


_of_group: WeakKeyDictionary[dist.ProcessGroup, Mailboxes] = WeakKeyDictionary()


def mailboxes_of(group: Group) -> Mailboxes:
    """The group's. All ranks make them with their first call, or after one has failed."""
    check_member(group)
    key = group or dist.group.WORLD
    assert key is not None
    found = _of_group.get(key)
    if found is None or not found.usable:
        found = _of_group[key] = Mailboxes(group)
    return found


def check_plain(tensor: Tensor, name: str) -> None:
    """Refuse what has no memory of the CPU that could be copied as it is."""
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        kind = f"{tensor.layout} on {tensor.device.type}"
        raise ValueError(f"{name} is {kind}: memory is shared on the CPU. Pass {name}.cpu()")
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        raise ValueError(f"{name} is a {type(tensor).__name__}: give a plain torch.Tensor")
