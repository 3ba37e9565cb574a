"""The training loop on one process: what every lesson starts from, and must be equal to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlcourse.corpus import Corpus
from dlcourse.parallel.loop import run_steps
from dlcourse.parallel.replicas import refuse_divided_experts


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
    refuse_divided_experts(model)
    device = next(model.parameters()).device
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model(tokens_BT, targets_BT)
        loss.backward()
        optimizer.step()
        return loss

    return run_steps(step, corpus, steps=steps, micro_batch=batch_size, block=block, device=device)
