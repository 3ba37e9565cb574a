"""A vocabulary cut over the ranks: embedding, and the loss without ever joining the logits.

Rank r holds the rows of tokens ``[r * V/p, (r + 1) * V/p)``. Where V does not divide, zeros are
added at the end (as Megatron does), and the loss leaves those columns out.

Shape suffixes as in gpt.py; N = B * T tokens.
Source: Shoeybi et al., "Megatron-LM", 2019, https://arxiv.org/abs/1909.08053, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.collectives.p2p import Group
from dlcourse.models.targets import IGNORED, check_range
from dlcourse.parallel.divisibility import padded_size
from dlcourse.parallel.first_derivatives import first_derivatives_of
from dlcourse.parallel.known_code import check_known
from dlcourse.parallel.part_state import PartialLayer
from dlcourse.parallel.tensor_layers import reduce_from, shard


class VocabParallelEmbedding(PartialLayer):
    """Each rank looks up the tokens that it holds, and gives zeros for the others; then the sum.

    Args:
        embedding: the whole table, equal in all ranks.
        process_group: the ranks that share it; all by default.
        leave: what joins the ranks' rows.

    Raises:
        ValueError: an option of ``nn.Embedding`` that is not kept here; in forward, tokens outside
            the table. In every rank.
    """

    cut = ("weight",)

    def __init__(
        self,
        embedding: nn.Embedding,
        process_group: Group = None,
        *,
        leave: Callable[[Tensor, Group], Tensor] = reduce_from,
    ) -> None:
        super().__init__()
        check_known(embedding, nn.Embedding, "embedding", "VocabParallelEmbedding cuts it")
        check_embedding(embedding)
        self.process_group, self.leave = process_group, leave
        self.num_embeddings = embedding.num_embeddings
        padded = padded_size(self.num_embeddings, dist.get_world_size(process_group))
        self.weight = shard(embedding.weight, dim=0, group=process_group, padded=padded)  # (V/p, C)
        self.padding_row: int | None = None  # is read like others, and learns nothing
        if embedding.padding_idx is not None:
            row, mine = local_rows(
                torch.tensor(embedding.padding_idx), len(self.weight), process_group
            )
            self.padding_row = int(row) if mine else None

    def forward(self, tokens_BT: Tensor) -> Tensor:
        check_range("tokens", tokens_BT, self.num_embeddings)
        row_BT, mine_BT = local_rows(tokens_BT, self.weight.size(0), self.process_group)
        x_BTC = F.embedding(row_BT, self.weight, self.padding_row) * mine_BT[..., None]
        return self.leave(x_BTC, self.process_group)


def check_embedding(embedding: nn.Module) -> None:
    """Refuse what is another thing for a part of the batch, of the table or of the ranks.

    ``max_norm`` changes rows where they are read, ``scale_grad_by_freq`` counts the tokens of one
    call, and gradients that are ``sparse`` are not sent. ``padding_idx`` is fine.
    """
    for name in ("max_norm", "scale_grad_by_freq", "sparse"):
        value = getattr(embedding, name, None)
        if value is not None and value is not False:
            raise ValueError(
                f"embedding.{name}={value!r}: an embedding that ranks or micro-batches share has "
                "no such thing; make it without"
            )


def local_rows(tokens: Tensor, num_rows: int, group: Group = None) -> tuple[Tensor, Tensor]:
    """For each token its row in this rank's part, and whether it is there at all."""
    row = tokens - dist.get_rank(group) * num_rows
    mine = (row >= 0) & (row < num_rows)
    return row.clamp(0, num_rows - 1), mine


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, group: Group) -> Tensor:
        row_N, mine_N = local_rows(targets_N, logits_NV.size(1), group)
        ctx.dtype = logits_NV.dtype
        valid_N = targets_N != IGNORED
        # 16 bits are too few to add exponentials in: from here on 32, or 64
        max_N = logits_NV.amax(dim=1).to(torch.promote_types(ctx.dtype, torch.float32))
        dist.all_reduce(max_N, op=dist.ReduceOp.MAX, group=group)  # else exp would overflow
        shifted_NV = logits_NV - max_N[:, None]
        target_N = shifted_NV.gather(1, row_N[:, None]).squeeze(1)
        exp_NV = shifted_NV.exp_()
        sums_2N = torch.stack([exp_NV.sum(dim=1), torch.where(mine_N, target_N, 0.0)])
        dist.all_reduce(sums_2N, group=group)
        sum_N, target_N = sums_2N
        softmax_NV = exp_NV.div_(sum_N[:, None])
        num_valid = valid_N.sum()
        ctx.save_for_backward(softmax_NV, row_N, mine_N, valid_N, num_valid)
        return torch.where(valid_N, sum_N.log() - target_N, 0.0).sum() / num_valid

    @staticmethod
    @first_derivatives_of("parallel_cross_entropy()")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        softmax_NV, row_N, mine_N, valid_N, num_valid = ctx.saved_tensors
        one_hot_N1 = mine_N.to(softmax_NV.dtype)[:, None]
        grad_NV = softmax_NV.scatter_add(1, row_N[:, None], -one_hot_N1)
        scale_N1 = torch.where(valid_N, grad / num_valid, 0.0)[:, None]
        return grad_NV.mul_(scale_N1).to(ctx.dtype), None, None


def parallel_cross_entropy(
    logits_NV: Tensor, targets_N: Tensor, group: Group = None, *, vocab_size: int | None = None
) -> Tensor:
    """Mean cross-entropy, where each rank has the logits of its part of the vocabulary.

    Sends 3 numbers a token (its largest logit; its sum of exponentials and its target's logit)
    in 2 all-reduces, whatever V is. Joining the logits would take V numbers.

    Args:
        logits_NV: this rank's part, (N, V/p), padding included.
        targets_N: token numbers in the whole vocabulary, the same in all ranks. Targets of -100
            do not count, as in ``F.cross_entropy``.
        group: the ranks that share the vocabulary; all by default.
        vocab_size: V without padding; columns behind it count as minus infinity.

    Returns:
        The loss, the same in all ranks; computed in float32 or more, and under autocast of that
        type. Its gradient is that of ``F.cross_entropy``.

    Raises:
        ValueError: targets of another shape or type, or outside the vocabulary; in every rank.
        RuntimeError: in backward with ``create_graph=True``.
    """
    num_columns = logits_NV.size(1)
    num_tokens = num_columns * dist.get_world_size(group) if vocab_size is None else vocab_size
    if targets_N.shape != logits_NV.shape[:1]:
        raise ValueError(
            f"targets_N has shape {tuple(targets_N.shape)}, and logits_NV has {len(logits_NV)} "
            "rows: give one token number for each"
        )
    check_range("targets_N", targets_N, num_tokens, ignored=IGNORED)
    if vocab_size is not None:
        num_valid = vocab_size - dist.get_rank(group) * num_columns
        if num_valid < num_columns:
            column_V = torch.arange(num_columns, device=logits_NV.device)
            logits_NV = logits_NV.masked_fill(column_V >= num_valid, float("-inf"))
    loss = _CrossEntropy.apply(logits_NV, targets_N, group)
    autocast = torch.is_autocast_enabled(logits_NV.device.type)
    return loss if autocast else loss.to(logits_NV.dtype)
