"""Four ways to use 16 bits, and the step that serves them all.

precision   parameters  products   optimizer      bytes a parameter between steps
float32     float32     float32    AdamW          4 + 4 + 8  = 16
autocast    float32     16 bits    AdamW          4 + 4 + 8  = 16
master      16 bits     16 bits    MasterAdamW    2 + 2 + 12 = 16
bfloat16    bfloat16    bfloat16   AdamW          2 + 2 + 4  = 8, and small steps are lost
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from dlcourse.corpus import Corpus
from dlcourse.formulas.recipe import PRECISIONS
from dlcourse.parallel.clipping import clip_grad_norm_
from dlcourse.parallel.loop import run_steps
from dlcourse.parallel.replicas import (
    refuse_divided_experts,
    sync_gradients,
    sync_parameters,
)
from dlcourse.training.mixed_precision.autocast import Autocast
from dlcourse.training.mixed_precision.loss_scaler import LossScaler
from dlcourse.training.mixed_precision.loss_scaler_checks import check_alone
from dlcourse.training.mixed_precision.master_adamw import MasterAdamW
from dlcourse.training.mixed_precision.support import check_precision


def prepare(
    model: nn.Module, precision: str, *, lr: float = 1e-3
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model with parameters of the right type, and the optimizer for them.

    Raises:
        ValueError: an unknown precision, or a device that cannot compute in bfloat16.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown: give one of {', '.join(PRECISIONS)}")
    if precision in ("master", "bfloat16"):
        check_precision(torch.bfloat16, next(model.parameters()).device)
        model = model.to(torch.bfloat16)
    optimizer = MasterAdamW if precision == "master" else torch.optim.AdamW
    return model, optimizer(model.parameters(), lr=lr)


def mixed_step(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    autocast: AbstractContextManager | None = None,
    scaler: LossScaler | torch.amp.GradScaler | None = None,
    max_norm: float | None = None,
) -> Tensor:
    """One training step.

    Args:
        model: ``model(tokens, targets)`` is the mean loss.
        batch: tokens and targets, each (B, T).
        autocast: ours or torch's, entered around forward alone.
        scaler: ours or torch's; float16 needs one.
        max_norm: clip gradients to this norm, once they are unscaled.

    Returns:
        The loss, a number without a graph.
    """
    if isinstance(scaler, torch.amp.GradScaler):
        check_alone(optimizer)  # ours does that itself
    optimizer.zero_grad()
    with autocast or nullcontext():
        loss = model(*batch)
    (scaler.scale(loss) if scaler else loss).backward()
    sync_gradients(model)  # of one in several ranks
    if max_norm is not None:
        if scaler:
            scaler.unscale_(optimizer)
        clip_grad_norm_(model, max_norm)  # torch's, unless ranks hold parts of the model
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    sync_parameters(model)
    return loss.detach()


def train(
    model: nn.Module,
    corpus: Corpus,
    *,
    precision: str,
    dtype: torch.dtype = torch.bfloat16,
    steps: int,
    batch_size: int = 4,
    block: int = 128,
    lr: float = 1e-3,
    scaler: LossScaler | torch.amp.GradScaler | None = None,
) -> list[float]:
    """Train in one process, in one of ``PRECISIONS``.

    Args:
        dtype: of autocast; the others have bfloat16.
        scaler: needed with ``dtype=torch.float16``.

    Returns:
        The loss of each step.

    Raises:
        ValueError: an unknown precision, a device without the type, or float16 without a scaler.
    """
    refuse_divided_experts(model)
    device = next(model.parameters()).device
    model, optimizer = prepare(model, precision, lr=lr)
    autocast = Autocast(device.type, dtype) if precision == "autocast" else None
    if autocast and dtype == torch.float16 and scaler is None:
        raise ValueError(
            "dtype=torch.float16 without a scaler: small gradients would become 0; "
            "give scaler=LossScaler(), or dtype=torch.bfloat16"
        )

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        batch = tokens_BT, targets_BT
        return mixed_step(model, batch, optimizer, autocast=autocast, scaler=scaler)

    return run_steps(step, corpus, steps=steps, micro_batch=batch_size, block=block, device=device)
