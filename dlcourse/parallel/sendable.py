"""What a module's tensors must be like to go round between ranks, wherever they lie in memory.

A message is one contiguous piece. A parameter need not be: it may be columns of a larger matrix,
a transposed one, or a view in which several elements are the same memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dlcourse.collectives.buffers import check_member
from dlcourse.collectives.p2p import Group


def group_size(process_group: Group) -> int:
    """How many ranks a group has, of which this rank must be one: a ``ValueError`` else."""
    check_member(process_group)
    return dist.get_world_size(process_group)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; what is shared comes once."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def cut_parameters(module: nn.Module) -> dict[Tensor, Group]:
    """Parameters of which each rank of a group holds a part of its own, and that group.

    Layers of tensor and expert parallelism name them in an attribute ``cut``, with a group for each
    name where it is not ``process_group`` for all. All others are the same in every rank.
    """
    layers: Iterable[Any] = module.modules()  # torch's class has neither of the two attributes
    return {
        parameter: layer.cut[name] if isinstance(layer.cut, dict) else layer.process_group
        for layer in layers
        for name in getattr(layer, "cut", ())
        if (parameter := getattr(layer, name)) is not None
    }


@contextmanager
def contiguous_memory(tensor: Tensor) -> Iterator[Tensor]:
    """The numbers of ``tensor`` in contiguous memory, and back again at the end.

    A message of a view that skips memory would hold what lies between its elements.
    """
    memory = tensor.detach()
    piece = memory.resolve_conj().resolve_neg().contiguous()
    yield piece
    if piece.data_ptr() != memory.data_ptr():
        for dim, stride in enumerate(memory.stride()):
            if stride == 0 and memory.size(dim) > 1:  # expanded: all of these are one number
                memory, piece = memory.narrow(dim, 0, 1), piece.narrow(dim, 0, 1)
        memory.copy_(piece)


def broadcast_tensors(tensors: Iterable[Tensor], group: Group) -> None:
    """Give every rank the first rank's numbers, in place. Of any dtype: they are sent as bytes."""
    for tensor in tensors:
        if isinstance(tensor, FakeTensor):  # no memory to look at
            dist.broadcast(tensor.detach(), group=group, group_src=0)
        elif tensor.numel() and not tensor.is_meta:
            with contiguous_memory(tensor) as piece:
                message = piece.view(-1).view(torch.uint8)
                dist.broadcast(message, group=group, group_src=0)


def overlaps(tensor: Tensor) -> bool:
    """Whether two elements of a tensor are the same memory."""
    if not tensor.numel():
        return False
    reach = 0  # how far the dimensions of smaller strides go
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            break
        reach += stride * (size - 1)
    else:
        return False
    extent = sum(d * (n - 1) for d, n in zip(tensor.stride(), tensor.shape, strict=True)) + 1
    places = torch.arange(extent).as_strided(tensor.shape, tensor.stride())
    return len(places.unique()) < tensor.numel()


def why_not_sent(module: nn.Module, process_group: Group) -> str:
    """Why a tensor of a module cannot have the first rank's numbers; empty where all can."""
    if any(hasattr(layer, "batch_group") for layer in module.modules()):
        return (
            "experts are divided over ranks, and average their gradients in a way of their own: "
            "give the model, built anew, to ExpertDataParallel, which does that, in place of data "
            "parallelism or ZeRO; cut by tensors before it"
        )
    for name, tensor in tensors_of(module).items():
        if tensor.layout != torch.strided:
            return f"{name} has the layout {tensor.layout}: make it dense, with .to_dense()"
        if tensor.requires_grad and overlaps(tensor):
            return (
                f"elements of parameter {name} share memory (shape {tuple(tensor.shape)}, strides "
                f"{tensor.stride()}), so that training one would change others: .clone() it"
            )
    return why_not_the_same(module, process_group)


def why_not_the_same(module: nn.Module, process_group: Group) -> str:
    """Which parameter the ranks of a group hold different parts of; empty where there is none."""
    group_size(process_group)  # refuses a rank that is not in it
    cut, receivers = cut_parameters(module), _ranks(process_group)
    for name, tensor in tensors_of(module).items():
        if tensor in cut and len(receivers & _ranks(cut[tensor])) > 1:
            return (
                f"parameter {name} is cut over the ranks {sorted(_ranks(cut[tensor]))}, and each "
                "has its own part: give a process_group of ranks that hold the same part"
            )
    return ""


def check_same_everywhere(module: nn.Module, process_group: Group, *, refusal: str = "") -> None:
    """Raise in every rank where the ranks' modules differ, or where one rank has a refusal.

    Raises:
        ValueError: says which ranks, and what to do.
    """
    size = group_size(process_group)
    layout = [
        (name, tuple(x.shape), str(x.dtype), x.requires_grad, x.is_meta, _how_it_overlaps(x))
        for name, x in tensors_of(module).items()
    ]
    device = "cuda" if "nccl" in dist.get_backend(process_group) else "cpu"
    mine = torch.tensor([zlib.crc32(repr(layout).encode()), bool(refusal)], device=device)
    everyone = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(everyone, mine, group=process_group)
    layouts, refusals = torch.stack(everyone).T.tolist()
    if any(refusals):
        raise ValueError(refusal or f"rank {refusals.index(1)} cannot send its module: see there")
    different = [rank for rank, theirs in enumerate(layouts) if theirs != layouts[0]]
    if different:
        raise ValueError(
            "module differs between ranks: names, shapes or dtypes of its parameters, or which of "
            f"them are frozen, in ranks {different} are not those in rank 0; build it from the "
            "same configuration in all"
        )


def _how_it_overlaps(tensor: Tensor) -> tuple[int, ...] | None:
    strided = tensor.layout == torch.strided and not tensor.is_meta
    return tensor.stride() if strided and overlaps(tensor) else None


def _ranks(process_group: Group) -> set[int]:
    return set(dist.get_process_group_ranks(process_group or dist.group.WORLD))
