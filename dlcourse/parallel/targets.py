"""What a batch may hold, and which of its targets count: asked before anything is computed or sent.

Embedding and loss find a wrong token themselves, but each in the one rank that it concerns, in the
middle of a step, while the others wait. Every rank of a pipeline or of tensor parallelism has the
whole batch, so each of them can refuse it at once.

A mean is over the targets that count. So parts of a batch, be they micro-batches or ranks, must not
be averaged: each counts by its number of targets, out of those of the whole batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dlcourse.models.gpt import GPTConfig
from dlcourse.training.accumulation import IGNORED


def check_vocabulary(name: str, values: Tensor, size: int, *, ignored: bool = False) -> None:
    """Refuse what the embedding (or with ``ignored`` the loss) of one process would refuse.

    Raises:
        ValueError: not whole numbers, or one outside 0 to ``size - 1``; ``ignored`` also allows
            ``IGNORED``, and int64 only.
    """
    if values.dtype != torch.int64 and (ignored or values.dtype != torch.int32):
        raise ValueError(f"{name} of {values.dtype} are not allowed: give torch.int64")
    if _has_no_numbers(values):
        return
    wrong = (values < 0) | (values >= size)
    if ignored:
        wrong &= values != IGNORED
    if wrong.any():
        also = f", or {IGNORED} where none counts" if ignored else ""
        raise ValueError(
            f"{name} hold {values[wrong][0].item()}, and the vocabulary has {size} tokens: "
            f"give 0 to {size - 1}{also}"
        )


def check_batch(tokens_BT: Tensor, targets_BT: Tensor, config: GPTConfig, *, parts: int) -> None:
    """Refuse a batch that a GPT of these sizes cannot take in ``parts`` equal micro-batches.

    Raises:
        ValueError: shape, type, a token or a target.
    """
    if tokens_BT.dim() != 2 or tokens_BT.shape != targets_BT.shape:
        raise ValueError(
            f"tokens of shape {tuple(tokens_BT.shape)} and targets of shape "
            f"{tuple(targets_BT.shape)}: both must be (sequences, positions), the same"
        )
    B, T = tokens_BT.shape
    if B == 0 or B % parts:
        raise ValueError(
            f"a batch of {B} sequences does not divide into {parts} micro-batches: "
            f"give a multiple of {parts}"
        )
    if not 1 <= T <= config.block_size:
        raise ValueError(
            f"a sequence of {T} tokens does not fit block_size={config.block_size}: "
            "give shorter sequences or a larger block_size"
        )
    check_vocabulary("tokens", tokens_BT, config.vocab_size)
    check_vocabulary("targets", targets_BT, config.vocab_size, ignored=True)


def num_targets(targets: Tensor) -> int:
    """How many count; all of them where a tensor has no numbers to look at."""
    return targets.numel() if _has_no_numbers(targets) else int((targets != IGNORED).sum())


def targets_per_rank(
    tokens_BT: Tensor,
    targets_BT: Tensor,
    config: GPTConfig,
    *,
    parts: int = 1,
    process_group: dist.ProcessGroup | None = None,
    num_ranks: int = 1,
) -> float:
    """How many targets count in the batch of a rank: the mean over the ranks that share a step.

    What to divide a sum of losses by, where the ranks' gradients are averaged afterwards: then
    every target of every rank counts the same. Sends 16 bytes where there are several ranks.

    Args:
        num_ranks: of ``process_group``.

    Returns:
        NaN where there is no target at all: so is the mean of no losses.

    Raises:
        ValueError: in every rank, where one of them has a batch that ``check_batch`` refuses.
    """
    refusal, count, refused = None, 0, 0
    try:
        check_batch(tokens_BT, targets_BT, config, parts=parts)
        count = num_targets(targets_BT)
    except ValueError as error:
        refusal = error
    if num_ranks > 1:
        numbers = torch.tensor([count, int(refusal is not None)], device=tokens_BT.device)
        dist.all_reduce(numbers, group=process_group)
        # Fake numbers cannot be read, and every fake rank has the same batch
        whole = [count * num_ranks, 0] if _has_no_numbers(numbers) else numbers.tolist()
        count, refused = whole[0] / num_ranks, whole[1]
    if refusal is not None:
        raise refusal
    if refused:
        raise ValueError(
            f"{refused} of {num_ranks} ranks cannot take their batch, and say why; here it is "
            "fine, but a step needs all of them"
        )
    return count or float("nan")


def check_embedding(embedding: nn.Module) -> None:
    """Refuse an embedding whose lookup is not the same for a part of the batch, rank or table.

    ``padding_idx`` is fine. ``max_norm`` changes rows where they are read, ``scale_grad_by_freq``
    counts tokens in the whole batch, and gradients that are ``sparse`` cannot be sent.

    Raises:
        ValueError: names the option.
    """
    for name in ("max_norm", "scale_grad_by_freq", "sparse"):
        value = getattr(embedding, name, None)
        if value is not None and value is not False:
            raise ValueError(
                f"the token embedding has {name}={value}, which is not kept when the model is "
                "split: make it without"
            )


def _has_no_numbers(tensor: Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)
