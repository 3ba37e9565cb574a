"""The memory of `shared`: a board for each rank, on which it writes and from which others read.

    kinds     a number of each rank: which call it makes, with which tensor
    boards    p rows, each cut into p parts: of[r][k] is what rank r has for rank k
    totals    one row more, for what an all-reduce has added up

The memory stays for the next call of the group. Why no rank is ahead of another by too much: a
board is written before the first barrier of a call and read between that and the second one.
"""

from __future__ import annotations

import mmap
import zlib

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.buffers import as_row
from dlcourse.collectives.mailboxes import check_plain
from dlcourse.collectives.p2p import tag_of
from dlcourse.collectives.shared_memory import TOKEN, map_shared

_maps: dict[dist.ProcessGroup | None, mmap.mmap] = {}


class Boards:
    """Boards for one call, each as long as a tensor. All ranks of the group make them together.

    Args:
        like: the tensor whose size and dtype must be those of all ranks.
        call: what is called, with what else must be equal, such as its op or its source.

    Attributes:
        of: of[r][k] is rank r's part for rank k. p x p x (n / p,); the first n % p parts have one
            element more.
        totals: p x (n / p,).

    Raises:
        ValueError: in every rank, where they are not on one machine or their tensors or calls
            differ, or for lack of memory.
    """

    def __init__(self, like: Tensor, group: dist.ProcessGroup | None, call: str) -> None:
        self._group, self._call = group, call
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        kind = _number(call) << 31 | tag_of(like)
        self._kinds, rows = _shared_rows(like, group)
        self._kinds[rank] = kind
        if not rows:  # there is less room than that: in all ranks, or they are told
            self.barrier_and_check()
            self._kinds, rows = _shared_rows(like, group, new=True)
            self._kinds[rank] = kind
        *self.of, self.totals = (row.tensor_split(size) for row in rows)

    def barrier_and_check(self) -> None:
        """A barrier, after which unlike calls are refused in all ranks: none has read anything."""
        dist.barrier(self._group)
        kinds = self._kinds.unique()
        if kinds.numel() == 1:
            return
        same_call = bool((kinds >> 31 == _number(self._call)).all())
        dist.barrier(self._group)  # all have seen it before one can begin another call
        if same_call:
            raise ValueError(
                "tensor differs between ranks in size or dtype: give all of them the same"
            )
        raise ValueError(
            f"this rank is in {self._call} and another is not: make the same call in all ranks, "
            "with the same op or src"
        )


def row_of(tensor: Tensor, group: dist.ProcessGroup | None, name: str = "tensor") -> Tensor:
    """`tensor` as one row, (numel,), or a refusal of what lies elsewhere than in CPU memory."""
    if not hasattr(tensor, "__tensor_flatten__"):  # `as_row` says what such a one holds
        check_plain(tensor, name)
    return as_row(tensor, group, name)


def _shared_rows(
    like: Tensor, group: dist.ProcessGroup | None, *, new: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Memory that all ranks of the group see.

    Args:
        new: make more of it, together; else that of earlier calls, if there is any.

    Returns:
        A number of each rank, (p,), and p + 1 rows, (numel,); no rows where they would be too
        short for it.
    """
    size, key = dist.get_world_size(group), group or dist.group.WORLD
    start, row_bytes = TOKEN + _aligned(8 * size), _aligned(like.nbytes)
    nbytes = start + (size + 1) * row_bytes
    if key not in _maps or new:
        instead = "Use torch.distributed's own call, or ring_all_reduce, instead"
        _maps[key] = map_shared(nbytes, group, instead=instead)
    # Rows keep their places in memory, whatever their length: a rank that is ahead writes to its
    # board while others still read the totals of the call before
    row_bytes = (len(_maps[key]) - start) // (size + 1)
    kinds = torch.frombuffer(_maps[key], dtype=torch.int64, offset=TOKEN, count=size)
    if len(_maps[key]) < nbytes:
        return kinds, []
    if not like.numel():
        return kinds, [as_row(like, group)] * (size + 1)
    memory = torch.frombuffer(_maps[key], dtype=torch.uint8, offset=start).view(size + 1, row_bytes)
    return kinds, [row.view(like.dtype) for row in memory[:, : like.nbytes]]


def _number(call: str) -> int:
    return zlib.crc32(call.encode())


def _aligned(nbytes: int) -> int:
    return max(-(-nbytes // 16), 1) * 16
