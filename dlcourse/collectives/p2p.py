"""Point to point: what every collective in this folder is built from.

A message is posted first and waited for later, so that several can travel at once. Three
things that torch's Gloo expects are kept here, so that the collectives can be read without them:

- Receive before send. A send whose receiver is ready goes out at once; any other must first
  ask the receiver and wait for its answer.
- Wait once. A second ``wait()`` on the same Gloo message never returns.
- Use memory again. The first touch of fresh memory costs more than adding the numbers in it.

And one that it does not: a message meets only a buffer of its own size and dtype (``tag_of``). Gloo
would put a short message, or numbers of another type, into any buffer without a word, and end the
process where a message is too long. With tags such ranks wait for each other, and are told so.

NCCL expects something else: a send and the receive that goes with it are posted together.
"""

from __future__ import annotations

import functools
import zlib
from collections import deque
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

Message = tuple[torch.Tensor, int]  # (buffer, the other rank's number in the group)

_REDUCERS: dict[dist.ReduceOp, Callable[..., torch.Tensor]] = {
    dist.ReduceOp.SUM: torch.add,
    dist.ReduceOp.MAX: torch.maximum,
}
_scratch: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}


def exchange(
    *, sends: Sequence[Message], receives: Sequence[Message], group: dist.ProcessGroup | None
) -> None:
    """Send and receive all of these at once, in any order of arrival, and wait for all."""
    ops = [_op(dist.irecv, buffer, r, group) for buffer, r in receives]
    ops += [_op(dist.isend, buffer, r, group) for buffer, r in sends]
    for work in dist.batch_isend_irecv(ops) if ops else ():
        work.wait()


def tag_of(tensor: torch.Tensor) -> int:
    """The number that a message and its buffer must have in common: made of size and dtype."""
    return _tag(tensor.numel(), tensor.dtype)


@functools.lru_cache(maxsize=1024)
def _tag(numel: int, dtype: torch.dtype) -> int:
    return zlib.crc32(f"{numel} {dtype}".encode()) >> 1  # 31 bits


def _op(
    call: Callable[..., dist.Work], buffer: torch.Tensor, rank: int, group: dist.ProcessGroup | None
) -> dist.P2POp:
    return dist.P2POp(call, buffer, group=group, group_peer=rank, tag=tag_of(buffer))


class Link:
    """Two one-way pipes: one to the rank `to`, one from the rank `source`.

    Messages arrive in the order in which they were sent. Each `expect` goes with the `send` at
    the same position: on NCCL the two are posted together, as one operation.

    Args:
        to, source: numbers of ranks in the group.
        device: where the buffers live.
        group: the process group; the default one if None.
    """

    def __init__(
        self, *, to: int, source: int, device: torch.device, group: dist.ProcessGroup | None
    ) -> None:
        self.to, self.source, self.group = to, source, group
        self.post_at_once = device.type == "cpu"
        self.unposted: deque[torch.Tensor] = deque()
        self.arriving: deque[list[dist.Work]] = deque()
        self.leaving: list[dist.Work] = []

    def expect(self, buffer: torch.Tensor) -> None:
        """The next message goes into `buffer`. Leave that alone until `arrive` returns."""
        if self.post_at_once:
            tag = tag_of(buffer)
            work = dist.irecv(buffer, group=self.group, group_src=self.source, tag=tag)
            self.arriving.append([work])
        else:
            self.unposted.append(buffer)

    def send(self, tensor: torch.Tensor) -> None:
        """Start to send. Do not change `tensor` before `close`."""
        if self.post_at_once:
            tag = tag_of(tensor)
            self.leaving.append(dist.isend(tensor, group=self.group, group_dst=self.to, tag=tag))
        else:
            buffer = self.unposted.popleft()
            receive = _op(dist.irecv, buffer, self.source, self.group)
            send = _op(dist.isend, tensor, self.to, self.group)
            self.arriving.append(dist.batch_isend_irecv([receive, send]))

    def arrive(self) -> None:
        """Wait until the oldest expected message is in its buffer."""
        for work in self.arriving.popleft():
            work.wait()

    def close(self) -> None:
        """Wait until everything sent has left."""
        for work in self.leaving:
            work.wait()


def flat(
    tensor: torch.Tensor, group: dist.ProcessGroup | None, name: str = "tensor"
) -> torch.Tensor:
    """`tensor` as one row that shares its memory. Shape: any -> (numel,)."""
    if tensor.is_conj() or tensor.is_neg():
        raise ValueError(
            f"{name} is a view that only notes to be conjugate or negative: what lies in memory is "
            f"something else. Call {name}.resolve_conj().resolve_neg() first"
        )
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} is not contiguous (shape {tuple(tensor.shape)}, strides {tensor.stride()}): "
            "a collective that works in place needs a tensor that lies in memory as one piece. "
            f"Call {name}.contiguous() first"
        )
    device = tensor.device.type
    if device != "cpu" and f"{device}:gloo" in dist.get_backend_config(group):
        raise ValueError(
            f"{name} is on {device}, but the group talks over Gloo, which sends from CPU memory "
            f"only. Pass {name}.cpu(), or make the ranks with a GPU each, so that they use NCCL"
        )
    return tensor.detach().view(-1)


def reducer(op: dist.ReduceOp, like: torch.Tensor) -> Callable[..., torch.Tensor]:
    """The function for `op` on tensors such as `like`; call it as ``reduce(a, b, out=c)``."""
    if op not in _REDUCERS:
        raise ValueError(f"op is {op}: use ReduceOp.SUM or ReduceOp.MAX")
    if not _can(_REDUCERS[op], like.dtype, like.device):
        raise ValueError(
            f"op is {op} and the tensor {like.dtype}, for which torch has no "
            f"torch.{_REDUCERS[op].__name__}: convert it to another type"
        )
    return _REDUCERS[op]


@functools.cache
def _can(reduce: Callable[..., torch.Tensor], dtype: torch.dtype, device: torch.device) -> bool:
    one = torch.ones(1, device=device).to(dtype)
    try:
        reduce(one, one, out=one)
    except RuntimeError:  # found out before anything is sent
        return False
    return True


def scratch(rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    """Uninitialised memory that stays allocated for the next call. Shape: (rows, columns)."""
    key, numel = (like.device, like.dtype), rows * columns
    if key not in _scratch or _scratch[key].numel() < numel:
        _scratch[key] = torch.empty(numel, dtype=like.dtype, device=like.device)
    return _scratch[key][:numel].view(rows, columns)
