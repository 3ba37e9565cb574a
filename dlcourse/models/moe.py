"""Mixture of experts: many feed-forward layers, of which each token uses a few.

    router    one small matrix: how well does each expert suit this token? The top k are chosen
    permute   token copies sorted by expert, so that each expert reads one piece of memory
    experts   every expert multiplies its own piece
    combine   each token adds up what its k experts say, weighted by the router

Sources: Shazeer et al., "Outrageously Large Neural Networks", 2017 (top-k); Lepikhin et al.,
"GShard", 2020, and Fedus et al., "Switch Transformers", 2021 (capacity, balance loss); Zoph et al.,
"ST-MoE", 2022 (z-loss); DeepSeek-AI, "DeepSeekMoE", 2024 (shared expert); Wang et al.,
"Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", 2024 (the bias).

Shape suffixes:
    N  tokens                     E  experts           C  width of the model
    K  experts that a token uses  M  copies of tokens: N K, less what was dropped
    F  width inside an expert
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Routing(NamedTuple):
    """What the router decided.

    Attributes:
        experts_NK: numbers of the chosen experts, int64, the best first.
        weights_NK: what their outputs count for, float32; a row adds up to 1 where K > 1.
        logits_NE: the router's scores, float32, from which both losses are computed.
    """

    experts_NK: Tensor
    weights_NK: Tensor
    logits_NE: Tensor


class Router(nn.Module):
    """Chooses ``top_k`` of ``num_experts`` experts for each token. Always computes in float32.

    ``bias_E`` is no parameter: it takes part in choosing, not in weighing, and has no gradient.
    ``update_bias`` moves it towards balance.

    Raises:
        ValueError: ``top_k`` is not from 1 to ``num_experts``.
    """

    bias_E: Tensor

    def __init__(self, width: int, num_experts: int, top_k: int) -> None:
        if not 1 <= top_k <= num_experts:
            raise ValueError(
                f"top_k={top_k} is not allowed with num_experts={num_experts}: "
                f"give 1 to {num_experts}"
            )
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        self.register_buffer("bias_E", torch.zeros(num_experts))

    def forward(self, x_NC: Tensor) -> Routing:
        with torch.autocast(x_NC.device.type, enabled=False):  # small differences decide: float32
            logits_NE = F.linear(x_NC.float(), self.weight.float())
        scores_NE = logits_NE.softmax(-1)
        experts_NK = (scores_NE.detach() + self.bias_E).topk(self.top_k).indices
        weights_NK = scores_NE.gather(1, experts_NK)
        if self.top_k > 1:  # with one expert the score itself must stay: it carries the gradient
            weights_NK = weights_NK / weights_NK.sum(1, keepdim=True)
        return Routing(experts_NK, weights_NK, logits_NE)

    @torch.no_grad()
    def update_bias(self, counts_E: Tensor, rate: float = 1e-3) -> None:
        """After a step: who had too many tokens is preferred a little less, and the reverse."""
        self.bias_E += rate * (counts_E.float().mean() - counts_E).sign()


class Experts(nn.Module):
    """``num_experts`` MLPs of the same size: one tensor for all their first matrices, and so on."""

    def __init__(self, width: int, num_experts: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.up_bias = nn.Parameter(torch.empty(num_experts, hidden))
        self.down = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.down_bias = nn.Parameter(torch.empty(num_experts, width))

    def forward(self, x_MC: Tensor, counts: list[int]) -> Tensor:
        """Rows sorted by expert, ``counts[e]`` of them for expert e. Shape: (M, C) to (M, C)."""
        rows = zip(
            x_MC.split(counts), self.up, self.up_bias, self.down, self.down_bias, strict=True
        )
        return torch.cat(
            [
                torch.addmm(down_bias, F.gelu(torch.addmm(up_bias, x_mC, up)), down)
                for x_mC, up, up_bias, down, down_bias in rows
            ]
        )


def capacity(num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> int:
    """Copies that one expert takes: its even share times the factor, rounded up."""
    return ceil(capacity_factor * num_tokens * top_k / num_experts)


def permute(
    experts_NK: Tensor, num_experts: int, limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """The order in which experts read copies of tokens.

    Args:
        limit: copies that an expert takes; later tokens beyond it are dropped. ``None`` drops none.

    Returns:
        copies_M: which of the N K copies (token n, choice k: n K + k), sorted by expert.
        counts_E: how many each expert gets.
    """
    chosen = experts_NK.flatten()
    copies_M = chosen.argsort(stable=True)
    counts_E = chosen.bincount(minlength=num_experts)
    if limit is not None:
        starts_E = counts_E.cumsum(0) - counts_E
        place_M = torch.arange(len(copies_M), device=chosen.device) - starts_E[chosen[copies_M]]
        copies_M, counts_E = copies_M[place_M < limit], counts_E.clamp(max=limit)
    return copies_M, counts_E


def combine(y_MC: Tensor, copies_M: Tensor, weights_NK: Tensor) -> Tensor:
    """Each token's sum of its experts' outputs, weighted; a dropped copy adds nothing. (N, C)."""
    weighted_MC = y_MC * weights_NK.flatten()[copies_M, None].to(y_MC.dtype)
    N, K = weights_NK.shape
    return (
        torch.zeros_like(y_MC[:0])
        .new_zeros(N, y_MC.size(1))
        .index_add(0, copies_M // K, weighted_MC)
    )


def balance_loss(routing: Routing, counts_E: Tensor) -> Tensor:
    """1 where every expert gets the same; more the more uneven. Gradient through the scores alone.

    Source: "Switch Transformers", equations 4 to 6.
    """
    share_E = counts_E / counts_E.sum()
    return share_E.numel() * (share_E * routing.logits_NE.softmax(-1).mean(0)).sum()


def z_loss(routing: Routing) -> Tensor:
    """Keeps logits small: the mean of (log of the sum of exp)^2. Source: "ST-MoE", equation 5."""
    return routing.logits_NE.logsumexp(-1).square().mean()


class MoE(nn.Module):
    """A feed-forward layer of experts, in one process.

    Args:
        width: C.
        hidden: F, width inside an expert; 4 C as in a dense MLP by default.
        shared: an expert beside the routed ones that every token uses.
        capacity_factor: an expert takes that many times its even share; ``None``: never drops.

    ``routing``, ``counts_E`` and ``num_dropped`` are those of the last forward.
    """

    def __init__(
        self,
        width: int,
        *,
        num_experts: int,
        top_k: int = 2,
        hidden: int | None = None,
        shared: nn.Module | None = None,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__()
        self.router = Router(width, num_experts, top_k)
        self.experts = Experts(width, num_experts, hidden or 4 * width)
        self.shared = shared
        self.num_experts, self.top_k, self.capacity_factor = num_experts, top_k, capacity_factor

    def forward(self, x: Tensor) -> Tensor:
        x_NC = x.flatten(0, -2)
        self.routing = routing = self.router(x_NC)
        limit = None
        if self.capacity_factor is not None:
            limit = capacity(len(x_NC), self.num_experts, self.top_k, self.capacity_factor)
        copies_M, self.counts_E = permute(routing.experts_NK, self.num_experts, limit)
        self.num_dropped = routing.experts_NK.numel() - len(copies_M)
        y_MC = self.experts(x_NC[copies_M // self.top_k], self.counts_E.tolist())
        y_NC = combine(y_MC, copies_M, routing.weights_NK)
        if self.shared is not None:
            y_NC = y_NC + self.shared(x_NC)
        return y_NC.view_as(x)
