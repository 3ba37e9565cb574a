"""What has to be equal in all replicas of a model, and how to make and to check it."""

from __future__ import annotations

import weakref

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from dlcourse.parallel.sendable import (
    broadcast_tensors,
    check_same_everywhere,
    group_size,
    tensors_of,
    why_not_sent,
    why_not_the_same,
)


def broadcast_module(module: nn.Module, *, process_group: dist.ProcessGroup | None = None) -> None:
    """Give every rank the parameters and buffers of the group's first rank.

    Raises:
        ValueError: in every rank, where the ranks hold models of different shapes (a broadcast
            between them hangs or mixes the numbers up), or where a parameter cannot be sent: its
            elements share memory, or it is a rank's own part of a matrix that is cut.

    Tensors without numbers (on ``meta``, or fake) have nothing to send.
    """
    tensors = tensors_of(module).values()
    if all(x.is_meta for x in tensors) or any(isinstance(x, FakeTensor) for x in tensors):
        return
    check_same_everywhere(module, process_group, refusal=why_not_sent(module, process_group))
    broadcast_tensors(tensors, process_group)


def broadcast_buffers(module: nn.Module, *, process_group: dist.ProcessGroup | None = None) -> None:
    """Give every rank the first rank's buffers, such as the running means of a BatchNorm."""
    broadcast_tensors(module.buffers(), process_group)


def sync_gradients(model: nn.Module) -> None:
    """After backward: ``model.sync_gradients()`` where it has that.

    A model in one process has not, nor has torch's DDP, which sends inside backward.
    """
    getattr(model, "sync_gradients", lambda: None)()


def sync_parameters(model: nn.Module) -> None:
    """After the optimizer's step: ``model.sync_parameters()`` where it has that, as ZeRO does."""
    getattr(model, "sync_parameters", lambda: None)()


# Models whose gradients leave during backward, as an offload's do: too early for a mean
SENT_EARLY: weakref.WeakSet[nn.Module] = weakref.WeakSet()
# Models whose gradients a wrapper averages after backward
AVERAGED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def refuse_own_gradients(module: nn.Module, why: str) -> None:
    """Raise a ``ValueError`` where a part of ``module`` has gradients to sync after backward.

    Its ``sync_gradients()`` has to run before the ranks' mean is made, and a wrapper that sends
    during backward is too early for that. ZeRO1 calls it.
    """
    if any(part in SENT_EARLY for part in module.modules()):
        raise ValueError(
            "module is in an OptimizerOffload, whose gradients leave during backward, before the "
            "ranks' mean is made: give the offload overlap=False"
        )
    for part in module.modules():
        if hasattr(part, "sync_gradients"):
            raise ValueError(
                f"module holds a {type(part).__name__}, whose sync_gradients() needs whole "
                f"gradients after backward: {why}; take ZeRO1, which calls it"
            )


def refuse_divided_experts(model: nn.Module) -> None:
    """Raise a ``ValueError`` where a loop would forget that ranks share the model's experts.

    Each would read the same text, and the experts' gradients, made of all ranks' tokens, would
    not be divided by their number.
    """
    if not hasattr(model, "batch_group"):
        for part in model.modules():
            if hasattr(part, "batch_group"):
                raise ValueError(
                    f"model holds a {type(part).__name__}, whose experts are divided over ranks: "
                    "build it anew, give it to ExpertDataParallel, which averages gradients, and "
                    "that to dlcourse.training.accumulation.train"
                )


@torch.no_grad()
def replica_drift(module: nn.Module, *, process_group: dist.ProcessGroup | None = None) -> float:
    """Largest difference between any two ranks in any parameter or buffer; 0.0 if identical.

    NaN where any rank holds NaN or an infinity. Ranks that drift raise no error. The loss only
    gets a little worse, so look now and then.

    Raises:
        ValueError: in every rank: modules of different shapes, or ranks that hold different parts
            of a matrix, or different experts, which cannot be equal.
    """
    check_same_everywhere(module, process_group, refusal=why_not_the_same(module, process_group))
    tensors = [x.to_dense().flatten() for x in tensors_of(module).values()]
    if not tensors:
        return 0.0
    numbers = [torch.view_as_real(x).flatten() if x.is_complex() else x for x in tensors]
    largest = F.pad(torch.cat([x.double() for x in numbers]), (1, 0))
    largest[0] = not largest.isfinite().all()  # a flag, since MAX and MIN may pass over NaN
    smallest = largest.nan_to_num_().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=process_group)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN, group=process_group)
    return float("nan") if largest[0] else (largest - smallest).max().item()


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

    Raises:
        ZeroDivisionError: in every rank, where none has a token.

    Returns:
        world size times this rank's share of all tokens. Over all ranks, weights average to 1.
    """
    size = group_size(process_group)
    total = torch.tensor(num_tokens, dtype=torch.int64, device=device)
    dist.all_reduce(total, group=process_group)
    if not total:
        raise ZeroDivisionError("num_tokens is 0 in all ranks: there is no token to take a mean of")
    return num_tokens * size / total.item()
