"""The job that every contestant gets: the course's GPT in its default size, and its batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.corpus import Corpus, sequences_per_rank
from dlcourse.models.gpt import GPT

# One whole training step, optimizer included: (tokens, targets) -> loss, shape ()
Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """What to train on, and how much.

    Attributes:
        batch_size: sequences of a step, over all ranks together.
        block: tokens of a sequence.
        micro_batches: of a pipeline, in a step.
        lr: AdamW's learning rate; all else is torch's default.
    """

    batch_size: int = 8
    block: int = 128
    micro_batches: int = 8
    lr: float = 1e-3

    @property
    def micro_batch(self) -> int:
        """Sequences of a rank in a step, where the ranks share them out.

        Raises:
            ValueError: the ranks do not divide the batch.
        """
        return sequences_per_rank(self.batch_size, world_size=dist.get_world_size())

    def model(self) -> GPT:
        """The same parameters in every rank and every library."""
        return GPT(seed=0).to(device())

    def batch(self, step: int, *, whole: bool) -> tuple[Tensor, Tensor]:
        """Tokens and targets of a step: the whole batch, or this rank's part of it."""
        rank, world_size = (0, 1) if whole else (dist.get_rank(), dist.get_world_size())
        size = sequences_per_rank(self.batch_size, world_size=world_size)
        part = Corpus(limit=500_000).batch(
            step, rank=rank, world_size=world_size, micro_batch=size, block=self.block
        )
        tokens_BT, targets_BT = (tensor.to(device()) for tensor in part)
        return tokens_BT, targets_BT


def device() -> torch.device:
    """This rank's GPU where the ranks have one each, else the CPU."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
