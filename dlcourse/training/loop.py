"""The training loop on one process: what every lesson starts from, and must be equal to."""

from __future__ import annotations

import torch
from torch import nn

from dlcourse.corpus import Corpus
from dlcourse.measure import mark_step


def train(
    model: nn.Module,
    corpus: Corpus,
    *,
    steps: int,
    batch_size: int = 16,
    block: int = 128,
    lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[float]:
    """Train ``model`` on ``batch_size`` sequences of ``block`` tokens a step.

    Args:
        model: called as ``model(tokens, targets)``, returns the mean loss.
        corpus: the text; step ``s`` always reads the same sequences.
        optimizer: AdamW with learning rate ``lr`` by default.

    Returns:
        The loss of each step.

    Raises:
        ValueError: the model is in a class whose gradients must be sent after backward.
    """
    if hasattr(model, "sync_gradients"):
        raise ValueError(
            f"model is a {type(model).__name__}, and this loop is for one process: use train of "
            f"{type(model).__module__}"
        )
    device = next(model.parameters()).device
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        tokens_BT, targets_BT = corpus.batch(step, micro_batch=batch_size, block=block)
        optimizer.zero_grad()
        loss = model(tokens_BT.to(device), targets_BT.to(device))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        mark_step(tokens=tokens_BT.numel(), loss=losses[-1])
    return losses
