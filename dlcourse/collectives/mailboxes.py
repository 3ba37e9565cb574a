"""The map of `one_sided`: for each pair of ranks a row of slots, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import memmove
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.buffers import check_all_to_all
from dlcourse.collectives.window import LINE, Group, Window

SLOTS = 2  # of a pair: one is filled while the other is emptied
CHUNK = 1 << 17  # bytes of a slot: fits into a core's cache with what is copied
MOST = 1 << 26  # bytes of all slots: among many ranks they are smaller
DTYPES = sorted({x for x in vars(torch).values() if isinstance(x, torch.dtype)}, key=str)
_NUMBERS = {dtype: number for number, dtype in enumerate(DTYPES)}


class Message:
    """What one rank sends another in one call: ``left`` bytes of it, from ``address`` on."""

    __slots__ = ("address", "dtype", "left", "nbytes")

    def __init__(self, address: int, nbytes: int, dtype: torch.dtype) -> None:
        self.address, self.nbytes, self.left, self.dtype = address, nbytes, nbytes, dtype


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
        self.chunk = max(1 << 12, min(CHUNK, MOST // (SLOTS * p * p)))
        self._slot = LINE + self.chunk
        super().__init__(group, control_words=2 * p * p, data_bytes=p * p * SLOTS * self._slot)
        self.num_put, self.num_taken = [0] * p, [0] * p
        first, mine = self.control, range(self.rank * p, (self.rank + 1) * p)
        self.put = self.words[first + mine.start : first + mine.stop]
        self._put_word = [first + to * p + self.rank for to in range(p)]
        first += p * p
        self.taken = self.words[first + mine.start : first + mine.stop]
        self._taken_word = [first + source * p + self.rank for source in range(p)]

    def outbox(self, to: int) -> int:
        """The address of the next slot for a rank."""
        return self._address(to * self.size + self.rank, self.num_put[to])

    def inbox(self, source: int) -> int:
        """The address of the next slot from a rank."""
        return self._address(self.rank * self.size + source, self.num_taken[source])

    def _address(self, pair: int, count: int) -> int:
        return self.address + (pair * SLOTS + count % SLOTS) * self._slot + LINE

    def tell_put(self, to: int) -> None:
        """The flag: one more slot for this rank is full."""
        self.num_put[to] = self.words[self._put_word[to]] = self.num_put[to] + 1

    def tell_taken(self, source: int) -> None:
        """One more slot from this rank is free."""
        self.num_taken[source] = self.words[self._taken_word[source]] = self.num_taken[source] + 1

    # ------------------------------------------------------------------ what is sent

    def messages(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Sequence[int] | None,
        input_split_sizes: Sequence[int] | None,
    ) -> tuple[dict[int, Message], dict[int, Message]]:
        """What is to be put for and taken from each other rank; the own part is copied."""
        for tensor, name in ((input, "input"), (output, "output")):
            check_plain(tensor, name)
        sent, expected = check_all_to_all(
            output, input, output_split_sizes, input_split_sizes, self.group
        )
        leaving, arriving = _cut(input, sent), _cut(output, expected)
        own, place = leaving[self.rank], arriving[self.rank]
        if own.nbytes != place.nbytes:
            raise ValueError(_unlike(self.names([self.rank]), own.nbytes, input.dtype, place))
        self.call.sent = input.nbytes - own.nbytes
        if own.nbytes:
            memmove(place.address, own.address, own.nbytes)
        return {k: leaving[k] for k in self.peers}, {k: arriving[k] for k in self.peers}

    def write_header(self, slot: int, message: Message) -> None:
        """Before a message's first bytes: how many there are, of which type."""
        word = self._header(slot)
        self.words[word], self.words[word + 1] = message.nbytes, _NUMBERS[message.dtype]

    def check_header(self, slot: int, message: Message, source: int) -> None:
        """Refuse a message that is not what this rank expects."""
        word = self._header(slot)
        nbytes, dtype = self.words[word], DTYPES[self.words[word + 1]]
        if (nbytes, dtype) != (message.nbytes, message.dtype):
            raise ValueError(_unlike(self.names([source]), nbytes, dtype, message))

    def _header(self, slot: int) -> int:
        return (slot - LINE - self.address + self.start) // 8


_of_group: WeakKeyDictionary[dist.ProcessGroup, Mailboxes] = WeakKeyDictionary()


def mailboxes_of(group: Group) -> Mailboxes:
    """The group's. All ranks make them with their first call, or after one has failed."""
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


def _cut(tensor: Tensor, rows: Sequence[int]) -> list[Message]:
    row_bytes = tensor.nbytes // len(tensor) if tensor.numel() else 0
    address, messages = tensor.data_ptr(), []
    for n in rows:
        messages.append(Message(address, n * row_bytes, tensor.dtype))
        address += n * row_bytes
    return messages


def _unlike(who: str, nbytes: int, dtype: torch.dtype, expected: Message) -> str:
    return (
        f"output_split_sizes expects {expected.nbytes} bytes of {expected.dtype} from {who}, which "
        f"sends {nbytes} of {dtype}: what one sends the other must expect. Send the sizes first"
    )
