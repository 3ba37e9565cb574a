"""One-sided: each rank puts its data straight into the others' memory, and then raises a flag.

Nobody asks whether the other is ready, and nobody answers. A receiver finds data and flag in its
own memory when it looks there. So NVSHMEM and DeepEP work between GPUs, and ``MPI_Put``
between hosts; here it is real, between the processes of one machine.

    rank 0                          memory of rank 1
    1. copy tokens   ────────────>  slot of rank 0:  tokens
    2. fence
    3. raise flag    ────────────>  put[0]:          1
                                    rank 1 sees 1, fence, takes the tokens, fence, says "taken"

When may rank 0 write into a slot again? It counts what it has put, rank 1 counts what it has
taken, and a pair has two slots. As long as fewer than two lie there untaken, the next one is free.
So no barrier is needed, and the second chunk is written while the first is read.

Order. All of it stands on one thing: who sees the flag sees the data. A processor may show stores
to the others in another order than they were made.
- x86: stores are seen in the order in which they were made, loads likewise, and no store comes
  before a load that precedes it. Not so inside a fast string copy, nor for non-temporal stores,
  both of which a large ``memmove`` may use; but a flag that is stored after them, and after a
  locked instruction, comes after all of them. (Intel, Software Developer's Manual, volume 3A:
  "Memory Ordering in P6 and More Recent Processor Families", "Fast-String Operation and
  Out-of-Order Stores", "Loads and Stores Are Not Reordered with Locked Instructions"; AMD's
  Programmer's Manual, volume 2, 7.2.)
- Arm: nothing is promised without a barrier, for stores, for loads, or from a load to a store.
  (Arm Architecture Reference Manual, B2.3.) Python has no such instruction, but its locks do:
  `Window.fence` stands in all three places, on every machine.
- A flag is one aligned word of 8 bytes, which both write and read as a whole (volume 3A,
  "Guaranteed Atomic Operations"; Arm, B2.2.1), and has one writer.
Tried on x86 only. Python's compiler and interpreter move nothing over a call into C.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import memmove

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.buffers import check_member, note_change
from dlcourse.collectives.mailboxes import SLOTS, Mailboxes, Parts, mailboxes_of


def all_to_all(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Part k of this rank's `input` becomes part r of rank k's `output`, as ``all_to_all_single``.

    Args:
        output, input: contiguous, on the CPU, cut along dimension 0. Shape: (rows, ...).
        output_split_sizes, input_split_sizes: rows from and to each rank; equal if None. Where
            a rank does not know what it will get: `exchange_counts` first.
        group: the ranks that take part, all on one machine; the default group if None.

    Raises:
        ValueError: arguments that cannot be, or another rank sends something else than expected.
            The other ranks raise too.
        RuntimeError: another rank has ended or failed, or did not come in the group's time.
    """
    boxes = mailboxes_of(group)
    boxes.begin("all_to_all", (input, output), input.numel() * input.itemsize)
    with boxes:
        leaving, arriving = boxes.parts(output, input, output_split_sizes, input_split_sizes)
        while leaving.ranks or arriving.ranks:
            moved = put(boxes, leaving) + take(boxes, arriving)
            if not moved:
                boxes.pause(arriving.ranks or leaving.ranks)
    note_change(output)
    return output


def put(boxes: Mailboxes, parts: Parts) -> int:
    """Put a chunk for every rank that has a free slot, and return for how many.

    A rank that has got its whole part is no longer in ``parts.ranks``.
    """
    taken = boxes.taken.tolist()
    ready = [to for to in parts.ranks if boxes.num_put[to] - taken[to] < SLOTS]
    if not ready:
        return 0
    boxes.fence()  # they have read the slots before this rank writes into them
    for to in ready:
        slot, header = boxes.next_to(to)
        if parts.done[to] == 0:
            boxes.write_header(header, parts, to)
        memmove(slot, *parts.next_chunk(to, boxes.chunk))
    boxes.fence()  # the data before the flag
    for to in ready:
        boxes.tell_put(to)
    parts.drop_done(ready)
    return len(ready)


def take(boxes: Mailboxes, parts: Parts) -> int:
    """Take a chunk from every rank that has put one; as `put`."""
    arrived = boxes.put.tolist()
    ready = [source for source in parts.ranks if boxes.num_taken[source] < arrived[source]]
    if not ready:
        return 0
    boxes.fence()  # the flag before the data
    for source in ready:
        slot, header = boxes.next_from(source)
        if parts.done[source] == 0:
            boxes.check_header(header, parts, source)
        place, nbytes = parts.next_chunk(source, boxes.chunk)
        memmove(place, slot, nbytes)
    boxes.fence()  # all has been read before the slots are free
    for source in ready:
        boxes.tell_taken(source)
    parts.drop_done(ready)
    return len(ready)


def exchange_counts(
    input_split_sizes: Sequence[int], group: dist.ProcessGroup | None = None
) -> list[int]:
    """Tell each rank how many rows it will get; returns how many this one will get from each."""
    sizes, p = list(input_split_sizes), dist.get_world_size(group)
    check_member(group)
    if len(sizes) != p or any(type(n) is not int or n < 0 for n in sizes):
        raise ValueError(
            f"input_split_sizes is {sizes}: give {p} whole numbers from 0 on, one for each rank"
        )
    counts = torch.tensor(sizes, dtype=torch.int64)
    return all_to_all(torch.empty_like(counts), counts, group=group).tolist()
