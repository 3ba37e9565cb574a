"""Gradient accumulation: one optimizer step from several small forward and backward passes.

``backward()`` adds to ``.grad``. So a batch that does not fit into memory can be taken in parts,
micro-batches, each of which frees its activations before the next one starts:

    optimizer.zero_grad()
    backward_equal(model, split(tokens_BT, targets_BT, accumulate=4))
    optimizer.step()

``model`` is a module, or a module inside ``DistributedDataParallel`` or one of the classes of
``dlcourse.parallel.data``. Then call ``sync_gradients()`` before the step where the class has it.

Shape suffixes: B sequences in the batch, M sequences in a micro-batch, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dlcourse.collectives.p2p import Group
from dlcourse.corpus import Corpus, sequences_per_rank
from dlcourse.models.targets import IGNORED
from dlcourse.parallel.loop import run_steps
from dlcourse.parallel.replicas import loss_weight, refuse_divided_experts, sync_gradients

MicroBatch = tuple[Tensor, Tensor]  # tokens and targets, each (M, T)


def split(tokens_BT: Tensor, targets_BT: Tensor, *, accumulate: int) -> list[MicroBatch]:
    """Cut a batch into ``accumulate`` micro-batches of equal size, as views: nothing is copied.

    Raises:
        ValueError: ``accumulate`` does not divide the number of sequences.
    """
    B = len(tokens_BT)
    if accumulate < 1 or B % accumulate:
        divisors = ", ".join(str(n) for n in range(1, B + 1) if B % n == 0)
        raise ValueError(
            f"accumulate={accumulate} does not divide a batch of {B} sequences: give one of "
            f"{divisors}, or weight micro-batches of different sizes with backward_by_tokens"
        )
    return list(zip(tokens_BT.chunk(accumulate), targets_BT.chunk(accumulate), strict=True))


def sending(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Where a micro-batch's forward *and* backward belong: only the last one's may send.

    The gradients of all micro-batches add up in ``.grad`` first, so one all-reduce is enough.
    """
    no_sync = getattr(model, "no_sync", nullcontext)
    return nullcontext() if last else no_sync()


def backward_equal(model: nn.Module, parts: Sequence[MicroBatch]) -> Tensor:
    """Add to ``.grad`` the gradient of the mean loss, for micro-batches with equally many targets.

    With other numbers it is a mean of means, and another gradient: take ``backward_by_tokens``.

    Args:
        model: ``model(tokens, targets)`` is the mean loss.
        parts: what ``split`` returns.

    Returns:
        The mean loss over all parts of this rank, a number without a graph.

    Raises:
        ValueError: a part without any target, whose mean would be NaN; before the first backward.
    """
    for number, (_, targets_MT) in enumerate(_some(parts), start=1):
        if not isinstance(targets_MT, FakeTensor) and (targets_MT == IGNORED).all():
            raise ValueError(
                f"micro-batch {number} of {len(parts)} has 0 targets, so it has no mean loss: use "
                "backward_by_tokens, for which every target counts the same"
            )
    total = _first_parameter(model).new_zeros(())
    for number, (tokens_MT, targets_MT) in enumerate(parts, start=1):
        with sending(model, last=number == len(parts)):
            loss = model(tokens_MT, targets_MT) / len(parts)
            loss.backward()  # adds to .grad, and frees this micro-batch's activations
        total += loss.detach()
    return total


def backward_by_tokens(model: nn.Module, parts: Sequence[MicroBatch]) -> Tensor:
    """The same where the numbers of targets differ: every target of every rank counts the same.

    A mean of means would count the targets of a short micro-batch for more. So each micro-batch
    gives its *sum*, and all are divided by one number, which must be known before the first
    backward. Ranks may have different numbers of micro-batches (not under ZeRO, which sends in each
    backward), and parts without any target.

    Args:
        model: ``model(tokens)`` are the logits, (M, T, V).
        parts: tokens and targets; a target ``IGNORED`` does not count.

    Returns:
        This rank's share of the loss, a number without a graph. Its mean over the ranks is the
        mean loss over all targets.

    Raises:
        ValueError: there is no target at all, in any rank; or ranks of a ZeRO model have different
            numbers of parts.
    """
    num_targets = sum(int((targets_MT != IGNORED).sum()) for _, targets_MT in _some(parts))
    device = _first_parameter(model).device
    is_zero = hasattr(model, "shards")
    if is_zero:
        ends = torch.tensor([len(parts), -len(parts)], device=device)
        dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=_group_of(model))
        if ends.sum() != 0:
            raise ValueError(
                f"{len(parts)} micro-batches here, and the ranks have {-int(ends[1])} to "
                f"{int(ends[0])}: {type(model).__name__} sends in each backward; give every rank "
                "as many, if only of IGNORED targets"
            )
    try:
        if is_zero or hasattr(model, "no_sync"):  # a mean over ranks is to come: 8 bytes are sent
            weight = loss_weight(num_targets, process_group=_group_of(model), device=device)
            per_target = weight / max(num_targets, 1)
        else:
            per_target = 1 / num_targets
    except ZeroDivisionError:
        raise ValueError(
            f"0 targets in {len(parts)} micro-batches: all are {IGNORED}, so there is no loss; "
            "skip this step in every rank"
        ) from None
    total = _first_parameter(model).new_zeros(())
    for number, (tokens_MT, targets_MT) in enumerate(parts, start=1):
        with sending(model, last=number == len(parts)):
            logits_NV = model(tokens_MT).flatten(0, -2)
            targets_N = targets_MT.flatten()
            loss = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum")
            loss = loss * per_target
            loss.backward()
        total += loss.detach()
    return total


def train(
    model: nn.Module,
    corpus: Corpus,
    *,
    steps: int,
    batch_size: int = 64,
    block: int = 128,
    accumulate: int = 4,
    lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[float]:
    """Train on ``batch_size`` sequences a step, a part of ``accumulate`` at a time.

    The same loop for one process, for our data parallelism and for torch's.

    Args:
        accumulate: split a process's part of the batch into this many micro-batches.
        optimizer: AdamW with learning rate ``lr`` by default.

    Returns:
        The loss of each step over this rank's part of the batch.

    Raises:
        ValueError: ranks and micro-batches do not divide ``batch_size``; a ZeRO model, which has a
            loop of its own; or divided experts outside ``ExpertDataParallel``.
    """
    if hasattr(model, "sync_parameters"):
        raise ValueError(
            f"model is a {type(model).__name__}, whose parameters must be gathered after a step: "
            "use dlcourse.parallel.zero.train, which accumulates as well"
        )
    refuse_divided_experts(model)
    rank, world_size = 0, 1
    if hasattr(model, "no_sync"):
        group = _group_of(model)
        rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    sequences = sequences_per_rank(batch_size, world_size=world_size, accumulate=accumulate)
    device = _first_parameter(model).device
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = backward_equal(model, split(tokens_BT, targets_BT, accumulate=accumulate))
        sync_gradients(model)
        optimizer.step()
        return loss

    return run_steps(
        step,
        corpus,
        steps=steps,
        device=device,
        rank=rank,
        world_size=world_size,
        micro_batch=sequences,
        block=block,
    )


def _some(parts: Sequence[MicroBatch]) -> Sequence[MicroBatch]:
    if not parts:  # the other ranks would wait for this one's gradients for ever
        raise ValueError("0 micro-batches: give every rank 1 or more, if only of IGNORED targets")
    return parts


def _group_of(model: nn.Module) -> Group:
    """The ranks over which a wrapper takes the mean; all by default."""
    return getattr(model, "batch_group", getattr(model, "process_group", None))


def _first_parameter(model: nn.Module) -> nn.Parameter:
    return next(getattr(model, "module", model).parameters())  # a ZeRO wrapper gives out none
