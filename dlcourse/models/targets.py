"""Targets that do not count, how much each part of a batch counts, and what a batch may hold.

A loss is a mean over targets. The mean of the means of two parts is the mean of the whole only
where both have the same number of targets. So each part is weighted by its number.

Embedding and loss find a wrong token by themselves, but only in the rank that looks it up, in the
middle of a step, while the others wait. All ranks that share a model have the whole batch, so each
of them can refuse it before anything is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dlcourse.formulas.sizes import check_size
from dlcourse.models.gpt import GPTConfig, check_shapes

IGNORED = -100  # a target that does not count: padding. The value that cross_entropy skips


def count(targets: Tensor) -> Tensor:
    """How many targets count: a number without dimensions; 8 bytes where the device has them."""
    exact = torch.float32 if targets.device.type == "mps" else torch.float64
    return (targets != IGNORED).sum().to(exact)


def shares(parts: Sequence[Tensor], total: Tensor | None = None) -> list[Tensor]:
    """What each part's mean loss counts for: its targets divided by those of all parts.

    Args:
        parts: the targets of each micro-batch.
        total: the targets to divide by, where there are more than these parts have.
    """
    counts = [count(part) for part in parts]
    total = torch.stack(counts).sum() if total is None else total
    return [number / total for number in counts]


def check_equal_counts(parts: Sequence[Tensor]) -> None:
    """Refuse targets of micro-batches for which the mean of the parts' means is another number.

    Raises:
        ValueError: not all parts have as many targets that count.
    """
    if any(isinstance(part, FakeTensor) or part.is_meta for part in parts):
        return  # shapes without numbers
    counts = [int(count(part)) for part in parts]
    if 0 in counts or len({*counts}) > 1:
        raise ValueError(
            f"the micro-batches have {counts} targets, and a mean of their means is not the mean "
            "of all: weight them, with backward_by_tokens of dlcourse.training.accumulation"
        )


def weighted(loss: Tensor, share: Tensor) -> Tensor:
    """``loss * share``; 0 where the share is 0 and the loss a mean of nothing, which is NaN."""
    return torch.where(share == 0, torch.zeros_like(loss), loss) * share.to(loss.dtype)


def check_range(name: str, numbers: Tensor, vocab_size: int, *, ignored: int | None = None) -> None:
    """Refuse what the embedding of one process would refuse, or with ``ignored`` its loss.

    Raises:
        ValueError: a number below 0 or from ``vocab_size`` on, other than ``ignored``; a type that
            torch does not take there.
    """
    if numbers.dtype != torch.int64 and (ignored is not None or numbers.dtype != torch.int32):
        raise ValueError(f"{name} has type {numbers.dtype}: give torch.int64")
    if isinstance(numbers, FakeTensor) or numbers.is_meta or not numbers.numel():
        return  # shapes without numbers
    wrong = (numbers < 0) | (numbers >= vocab_size)
    if ignored is not None:
        wrong &= numbers != ignored
    if wrong.any():
        raise ValueError(
            f"{name} has {numbers[wrong][0].item()}: allowed is 0 to {vocab_size - 1}"
            + ("" if ignored is None else f", or {ignored} for a target that does not count")
        )


def check_batch(
    tokens_BT: Tensor, targets_BT: Tensor, config: GPTConfig, *, accumulate: int
) -> None:
    """Refuse a batch that a GPT of these sizes cannot take in ``accumulate`` micro-batches.

    Raises:
        ValueError: shapes, types, a token or a target.
    """
    check_shapes(tokens_BT, targets_BT)
    check_size("accumulate", accumulate)
    B, T = tokens_BT.shape
    if not B or B % accumulate:
        raise ValueError(
            f"a batch of {B} sequences does not divide into {accumulate} micro-batches: "
            f"give a multiple of {accumulate}"
        )
    if not 1 <= T <= config.block_size:
        raise ValueError(
            f"a sequence of {T} tokens does not fit block_size={config.block_size}: "
            "give shorter sequences or a larger block_size"
        )
    check_range("tokens", tokens_BT, config.vocab_size)
    check_range("targets", targets_BT, config.vocab_size, ignored=IGNORED)


def total_targets(
    tokens_BT: Tensor,
    targets_BT: Tensor,
    config: GPTConfig,
    *,
    accumulate: int,
    num_ranks: int = 1,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """How many targets count in the batches of all ranks that share a step. Sends 16 bytes.

    Args:
        num_ranks: of ``process_group``; 1 sends nothing.

    Raises:
        ValueError: in every rank, where one of them has a batch that ``check_batch`` refuses.
    """
    refusal = None
    total = count(targets_BT)
    try:
        check_batch(tokens_BT, targets_BT, config, accumulate=accumulate)
    except ValueError as error:
        refusal = error
    if num_ranks > 1:
        numbers = torch.stack([total, torch.full_like(total, refusal is not None)])
        dist.all_reduce(numbers, group=process_group)
        total, refused = numbers
        if refusal is None and not isinstance(refused, FakeTensor) and refused:
            refusal = ValueError(
                f"{int(refused)} of {num_ranks} ranks cannot take their batch, and say why; this "
                "rank's is fine, but a step needs all of them"
            )
    if refusal is not None:
        raise refusal
    return total
