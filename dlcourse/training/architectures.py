"""Train one architecture, and look at it while it trains: losses by kind of text, who takes what.

A router that nobody holds back can **collapse**: an expert that is ahead gets more tokens, learns
more, and is chosen more. Two cures, and each has its price:

- ``balance="loss"``: a second loss, which is least where all experts get the same. Its gradient
  pulls at the same weights as the loss of the text.
- ``balance="bias"``: no loss. After each step a number is added to the scores of experts that had
  too little, for choosing alone.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlcourse.corpus import KINDS, KindsCorpus
from dlcourse.formulas.sizes import ArchitectureConfig, check_size
from dlcourse.models.architectures import ArchitectureGPT
from dlcourse.models.moe import balance_loss, z_loss
from dlcourse.parallel.loop import run_steps

BALANCES = (None, "loss", "bias")
WARM_UP = 50  # steps in which the learning rate grows to its value, where it then stays


def extra_loss(model: ArchitectureGPT, *, balance: float = 0.0, z: float = 0.0) -> Tensor:
    """What is added to the loss of the text: weighted sums over the layers of experts."""
    extra = torch.zeros(())
    for moe in model.moe_layers().values():
        if balance:
            extra = extra + balance * balance_loss(moe.routing, moe.routing.counts())
        if z:
            extra = extra + z * z_loss(moe.routing)
    return extra


@torch.no_grad()
def look(model: ArchitectureGPT, corpus: KindsCorpus, *, sequences: int, block: int) -> dict:
    """Held-out loss by kind of text, and which expert takes what share of it.

    All kinds go through the model together, as in training, so capacity means the same.

    Returns:
        ``loss``: by kind, and their mean as "mean". ``load``: by layer and kind, each expert's
        share of the copies of tokens; of what the router asked for, before any is dropped.
        ``scores``: by layer, the largest of the router's logits, either sign, as "largest"; and
        as "log_sum" the mean log of the sum of their exp, which the z-loss squares.
    """
    parts = [corpus.held_out(kind, sequences=sequences, block=block) for kind in KINDS]
    tokens_BT, targets_BT = (torch.cat(part) for part in zip(*parts, strict=True))
    logits_BTV = model(tokens_BT)
    loss_N = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none")
    by_kind = loss_N.view(len(KINDS), -1).mean(1).tolist()
    loss = dict(zip(KINDS, by_kind, strict=True)) | {"mean": sum(by_kind) / len(KINDS)}
    load = {}
    for layer, moe in model.moe_layers().items():
        chosen = moe.routing.experts_NK.view(len(KINDS), -1)
        counts = [kind.bincount(minlength=moe.num_experts) for kind in chosen]
        load[layer] = {
            kind: (count / count.sum()).tolist() for kind, count in zip(KINDS, counts, strict=True)
        }
    scores = {layer: _scores(moe.routing.logits_NE) for layer, moe in model.moe_layers().items()}
    return {"loss": loss, "load": load, "scores": scores}


def _scores(logits_NE: Tensor) -> dict[str, float]:
    return {
        "largest": logits_NE.abs().max().item(),
        "log_sum": logits_NE.logsumexp(-1).mean().item(),
    }


def train(
    config: ArchitectureConfig,
    *,
    steps: int,
    balance: str | None = "loss",
    balance_weight: float = 0.01,
    bias_rate: float = 1e-3,
    z_weight: float = 0.0,
    router_scale: float = 1.0,
    batch_size: int = 12,
    block: int = 96,
    lr: float = 3e-3,
    seed: int = 0,
    look_every: int = 50,
    sequences: int = 32,
    on_look: Callable[[dict], None] | None = None,
) -> dict[str, Any]:
    """Train a GPT of this architecture on code, English and Korean, in one process.

    Args:
        balance: what keeps a router from collapsing: "loss", "bias" or ``None``.
        balance_weight: of the balance loss. Source of the default: "Switch Transformers", 2.2.
        bias_rate: what a bias changes by in a step.
        z_weight: of the router's z-loss; 0.001 in "ST-MoE".
        router_scale: the routers' weights are so many times as large at the start, and so are
            their scores.
        seed: of the weights and of the order of the text.
        look_every: steps between two looks at held-out text; the last step is always looked at.
        sequences: held-out sequences of each kind.
        on_look: is given each look as it is made.

    Returns:
        Plain lists and dicts. ``losses``: of each step, of the text alone. ``looks``: what
        ``look`` returns, with ``step``, the steps done before it. ``busiest``: by layer, the share
        of its busiest expert in each step. ``dropped``: share of all copies in each step.

    Raises:
        ValueError: an unknown balance, a weight below 0, or a size that is not a whole number.
        FloatingPointError: a router's scores are not finite.
    """
    if balance not in BALANCES:
        raise ValueError(f"balance={balance!r} is unknown: give 'loss', 'bias' or None")
    for name, size in (("steps", steps), ("look_every", look_every), ("batch_size", batch_size)):
        check_size(name, size)
    for name, weight in (
        ("balance_weight", balance_weight),
        ("bias_rate", bias_rate),
        ("z_weight", z_weight),
        ("router_scale", router_scale),
    ):
        if type(weight) not in (int, float) or not 0 <= weight < inf:
            raise ValueError(f"{name}={weight!r} is not allowed: give 0 or a number above it")
    model, corpus = ArchitectureGPT(config, seed=seed), KindsCorpus(seed=seed)
    layers = model.moe_layers()
    for moe in layers.values():
        moe.router.weight.data *= router_scale
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARM_UP, total_iters=WARM_UP)
    looks: list[dict] = []
    busiest: dict[int, list[float]] = {layer: [] for layer in layers}
    dropped: list[float] = []
    done = 0

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        nonlocal done
        loss = model(tokens_BT, targets_BT)
        weight = balance_weight if balance == "loss" else 0.0
        optimizer.zero_grad()
        (loss + extra_loss(model, balance=weight, z=z_weight)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        for layer, moe in layers.items():
            counts = moe.routing.counts()
            if balance == "bias":
                moe.router.update_bias(counts, bias_rate)
            busiest[layer].append((counts.max() / counts.sum()).item())
        copies = sum(moe.routing.experts_NK.numel() for moe in layers.values())
        dropped.append(sum(moe.num_dropped for moe in layers.values()) / max(copies, 1))
        done += 1
        if done % look_every == 0 or done == steps:
            looks.append({"step": done, **look(model, corpus, sequences=sequences, block=block)})
            if on_look is not None:
                on_look(looks[-1])
        return loss

    losses = run_steps(
        step, corpus, steps=steps, micro_batch=batch_size, block=block, device=torch.device("cpu")
    )
    return {"losses": losses, "looks": looks, "busiest": busiest, "dropped": dropped}
