"""Torch's operators for collectives: what each is called, and how many bytes its buffer has."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import ProcessGroup

from dlcourse.measure.tensors import bytes_of, tensors_in

# c10d operator -> torch's name for it, and the argument that holds the buffer of S bytes:
# the whole input of a reduce-scatter, the whole output of an all-gather.
OPERATORS = {
    "allreduce_": ("all_reduce", "tensors"),
    "allreduce_coalesced_": ("all_reduce", "tensors"),
    "allgather_": ("all_gather", "output_tensors"),
    "_allgather_base_": ("all_gather", "output_tensor"),
    "allgather_coalesced_": ("all_gather", "output_lists"),
    "allgather_into_tensor_coalesced_": ("all_gather", "outputs"),
    "reduce_scatter_": ("reduce_scatter", "input_tensors"),
    "_reduce_scatter_base_": ("reduce_scatter", "input_tensor"),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", "inputs"),
    "alltoall_": ("all_to_all", "input_tensors"),
    "alltoall_base_": ("all_to_all", "input"),
    "broadcast_": ("broadcast", "tensors"),
    "reduce_": ("reduce", "tensors"),
    "gather_": ("gather", "input_tensors"),
    "scatter_": ("scatter", "output_tensors"),
    "send": ("send", "tensors"),
    "recv_": ("recv", "tensors"),
    "recv_any_source_": ("recv", "tensors"),
    "barrier": ("barrier", None),
    "monitored_barrier_": ("barrier", None),
}
# The same on fake tensors, where functional collectives are not taken apart.
_FUNCTIONAL = {
    "broadcast": "broadcast",
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}
_PER_RANK = ("gather", "scatter")  # the argument named above is one rank's share of S


class Signature:
    """Where the arguments of one operator are that we need."""

    def __init__(self, overload: Any) -> None:
        arguments = overload._schema.arguments
        self._names = [a.name for a in arguments]
        self.tensor_names = [a.name for a in arguments if "Tensor" in str(a.type)]
        # A value equal to the default is left out of a call; for async_op that is True.
        self._asynchronous = next((n for n in self._names if n in ("async_op", "asyncOp")), "")
        self._default = any(a.name == self._asynchronous and a.default_value for a in arguments)

    def bind(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by their names."""
        return {**dict(zip(self._names, args, strict=False)), **kwargs}

    def asynchronous(self, given: dict[str, Any]) -> bool:
        """Whether a call returns before it is done."""
        return bool(given.get(self._asynchronous, self._default))


_signatures: dict[Any, Signature] = {}


def signature_of(overload: Any) -> Signature:
    """The signature of an operator, worked out once."""
    if overload not in _signatures:
        _signatures[overload] = Signature(overload)
    return _signatures[overload]


@dataclass(slots=True)
class Call:
    """What a call of a collective says.

    Attributes:
        op: torch's name, such as "all_reduce".
        nbytes: S, the whole buffer; see `wire_bytes` in `dlcourse.measure.run.comm`.
        peer: the other rank (global) of a message; None where any may send it.
        sent: bytes that leave this rank, where they do not follow from S.
    """

    op: str
    group: str
    group_size: int
    nbytes: int
    dtype: str
    asynchronous: bool
    peer: int | None
    sent: int | None


def read_call(
    overload: Any, args: tuple, kwargs: dict[str, Any]
) -> tuple[Call, list[Tensor], ProcessGroup] | None:
    """Read a call of a c10d operator: also all its tensors, and its group.

    None: the tensors are fake, `read_fake_call` is to read it.
    """
    op, buffer = OPERATORS[overload._opname]
    signature = signature_of(overload)
    given = signature.bind(args, kwargs)
    buffers = [] if buffer is None else list(tensors_in(given[buffer]))
    if any(t.is_meta for t in buffers):
        return None
    group = ProcessGroup.unbox(given["process_group"])
    nbytes = sum(map(bytes_of, buffers)) * (group.size() if op in _PER_RANK else 1)
    peer, sent = None, None
    if op in ("send", "recv"):
        peer = given.get("dst", given.get("src"))
        peer = None if peer is None else _global_rank(group, peer)
    elif op == "all_to_all":
        sent = _sent_to_others(given, nbytes, group)
    elif any(t.layout != torch.strided for t in buffers):  # all ranks gather all others' entries
        sent = nbytes * (group.size() - 1)
    call = Call(
        op=op,
        group=group.group_name,
        group_size=group.size(),
        nbytes=nbytes,
        dtype=_dtype(buffers),
        asynchronous=signature.asynchronous(given),
        peer=peer,
        sent=sent,
    )
    tensors = [t for name in signature.tensor_names for t in tensors_in(given[name])]
    return call, tensors, group


def read_fake_call(
    overload: Any, args: tuple, kwargs: dict[str, Any]
) -> tuple[Call, list[Tensor]] | None:
    """Read a call on fake tensors: also the tensors of its buffer. None: it is no collective."""
    name = overload._opname
    if name in OPERATORS:
        op, buffer = OPERATORS[name]
        given = signature_of(overload).bind(args, kwargs)
        group = ProcessGroup.unbox(given["process_group"])
        group_name, size = group.group_name, group.size()
        buffers = [] if buffer is None else list(tensors_in(given[buffer]))
        nbytes = sum(map(bytes_of, buffers)) * (size if op in _PER_RANK else 1)
    else:
        base = name.removesuffix("_").removesuffix("_coalesced").removesuffix("_out")
        if base not in _FUNCTIONAL:
            return None
        op = _FUNCTIONAL[base]
        given = signature_of(overload).bind(args, kwargs)
        group_name = given["group_name"]
        if not isinstance(group_name, str):
            group_name = ProcessGroup.unbox(group_name).group_name
        size = dist.distributed_c10d._resolve_process_group(group_name).size()
        buffers = list(tensors_in(given.get("input", given.get("inputs"))))
        nbytes = sum(map(bytes_of, buffers)) * (size if op == "all_gather" else 1)
    call = Call(
        op=op,
        group=group_name,
        group_size=size,
        nbytes=int(nbytes),
        dtype=_dtype(buffers),
        asynchronous=False,
        peer=None,
        sent=None,
    )
    return call, buffers


def _dtype(buffers: list[Tensor]) -> str:
    return str(buffers[0].dtype).removeprefix("torch.") if buffers else ""


def _global_rank(group: ProcessGroup, peer: int) -> int:
    with contextlib.suppress(Exception):  # a group that torch's tables do not know
        return dist.get_global_rank(group, peer)
    return peer


def _sent_to_others(given: dict[str, Any], nbytes: int, group: ProcessGroup) -> int:
    """Bytes of an all-to-all that leave this rank: all but the part for itself."""
    me = group.rank()
    parts = given.get("input_tensors")
    if parts is not None:
        return nbytes - bytes_of(parts[me])
    splits = given.get("input_split_sizes")
    if splits:
        rows = sum(splits)
        return nbytes - (nbytes * splits[me] // rows if rows else 0)
    return nbytes - nbytes // group.size()
