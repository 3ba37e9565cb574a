"""What has to be equal in all replicas of a model, and how to make and to check it."""

from __future__ import annotations

import zlib

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor


def broadcast_module(module: nn.Module, *, process_group: dist.ProcessGroup | None = None) -> None:
    """Give every rank the parameters and buffers of the group's first rank.

    Raises:
        ValueError: in every rank, where the ranks hold models of different shapes. Without this
            check, a broadcast between different shapes hangs or mixes the numbers up.

    Tensors without numbers (on ``meta``, or fake) have nothing to send.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    if any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in tensors.values()):
        return
    layout = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()]
    device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
    mine = torch.tensor([zlib.crc32(repr(layout).encode())], device=device)
    layouts = [torch.empty_like(mine) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(layouts, mine, group=process_group)
    different = [rank for rank, theirs in enumerate(layouts) if theirs != layouts[0]]
    if different:
        raise ValueError(
            f"module differs between ranks: names, shapes or dtypes of its parameters in ranks "
            f"{different} are not those in rank 0; build it from the same configuration in all"
        )
    for tensor in tensors.values():
        dist.broadcast(tensor.detach(), group=process_group, group_src=0)


@torch.no_grad()
def replica_drift(module: nn.Module, *, process_group: dist.ProcessGroup | None = None) -> float:
    """Largest difference between any two ranks in any parameter; 0.0 where all are identical.

    Ranks that drift raise no error. The loss only gets a little worse, so look now and then.
    """
    largest = torch.cat([parameter.flatten() for parameter in module.parameters()])
    smallest = largest.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=process_group)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN, group=process_group)
    return (largest - smallest).max().item()


def loss_weight(
    num_tokens: int,
    *,
    process_group: dist.ProcessGroup | None = None,
    device: torch.device | str = "cpu",
) -> float:
    """What to multiply a rank's mean loss by, where ranks have different numbers of tokens.

    The mean of the ranks' means counts a token of a small batch for more than one of a large
    batch. With ``(loss * loss_weight(targets.numel())).backward()`` every token counts the same.

    Args:
        num_tokens: targets that this rank's loss is the mean of.
        device: where the process group communicates; NCCL needs ``"cuda"``.

    Returns:
        world size times this rank's share of all tokens. Over all ranks, weights average to 1.
    """
    total = torch.tensor(num_tokens, dtype=torch.int64, device=device)
    dist.all_reduce(total, group=process_group)
    return num_tokens * dist.get_world_size(process_group) / total.item()
