"""The loop that every training here runs in: batches in, losses out, and a mark after each step.

One parallelism differs from another in what it does *in* a step. So that is all that is left to
each ``train``: which part of the batch is this rank's, and a function of tokens and targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.p2p import Group
from dlcourse.corpus import Corpus
from dlcourse.measure import mark_step

Step = Callable[[Tensor, Tensor], Tensor | None]  # (tokens, targets) -> this rank's loss, if any


def run_steps(
    step: Step,
    corpus: Corpus,
    *,
    steps: int,
    micro_batch: int,
    block: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    counts: bool = True,
) -> list[float]:
    """Run ``step`` on the batches of ``corpus``; see ``Corpus.batch`` for the part of a rank.

    Args:
        step: forward, backward and optimizer.
        micro_batch: sequences of this rank in a step, over all of its micro-batches.
        rank, world_size: this one and the number of those that read different sequences.
        counts: whether the tokens count: where several ranks read the same, those of one do.

    Returns:
        The loss of each step in this rank; NaN where it knows none.
    """
    losses = []
    for number in range(steps):
        tokens_BT, targets_BT = corpus.batch(
            number, rank=rank, world_size=world_size, micro_batch=micro_batch, block=block
        )
        loss = step(tokens_BT.to(device), targets_BT.to(device))
        losses.append(math.nan if loss is None else loss.item())
        mark_step(tokens=counts * tokens_BT.numel(), loss=None if loss is None else losses[-1])
    return losses


def mean_over_ranks(
    losses: list[float], *, device: torch.device, process_group: Group = None
) -> list[float]:
    """The mean of the ranks' losses, step by step: the same numbers in every rank.

    Sends 8 bytes a step to every other rank.
    """
    mine = torch.tensor(losses, dtype=torch.float64, device=device)
    of_all_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(of_all_ranks, mine, group=process_group)
    return torch.stack(of_all_ranks).mean(dim=0).tolist()
