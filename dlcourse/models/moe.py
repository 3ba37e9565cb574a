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

from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dlcourse.formulas.sizes import check_experts, check_size


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

    def counts(self) -> Tensor:
        """Copies of tokens that each expert is to get, before any is dropped: (E,), int64."""
        return self.experts_NK.flatten().bincount(minlength=self.logits_NE.size(1))

    def __deepcopy__(self, memo: dict) -> Routing:
        """Without the graph, which torch does not copy: so a layer is copied after a forward."""
        return Routing(*(tensor.detach().clone() for tensor in self))


class Router(nn.Module):
    """Chooses ``top_k`` of ``num_experts`` experts for each token. Computes in float32 at least.

    ``bias_E`` is no parameter: it takes part in choosing, not in weighing, and has no gradient.
    ``update_bias`` moves it towards balance. It stays float32 in a model of 16 bits.

    Raises:
        ValueError: ``top_k`` is not from 1 to ``num_experts``.
    """

    bias_E: Tensor

    def __init__(self, width: int, num_experts: int, top_k: int) -> None:
        check_experts(num_experts, top_k)
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        self.register_buffer("bias_E", torch.zeros(num_experts, dtype=torch.float32))
        self.reset_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        bias_E = self.bias_E
        super()._apply(fn, recurse)
        if self.bias_E.dtype.itemsize < 4:  # from 0.5 on, bfloat16 has no place for a step of 0.001
            self.bias_E = bias_E.to(self.bias_E.device)
        return self

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Small random scores: N(0, 0.02), no expert far ahead."""
        nn.init.normal_(self.weight, std=0.02)
        self.bias_E.zero_()

    def forward(self, x_NC: Tensor) -> Routing:
        # Small differences decide, so autocast must not round them to bfloat16
        dtype = torch.promote_types(x_NC.dtype, torch.float32)
        with torch.autocast(x_NC.device.type, enabled=False):
            logits_NE = F.linear(x_NC.to(dtype), self.weight.to(dtype))
        scores_NE = logits_NE.softmax(-1)
        experts_NK = (scores_NE.detach() + self.bias_E).topk(self.top_k).indices
        weights_NK = scores_NE.gather(1, experts_NK)
        if self.top_k > 1:  # with one expert the score itself must stay: it carries the gradient
            weights_NK = weights_NK / weights_NK.sum(1, keepdim=True)
        return Routing(experts_NK, weights_NK, logits_NE)

    @torch.no_grad()
    def update_bias(self, counts_E: Tensor, rate: float = 1e-3) -> None:
        """After a step: who had too many tokens is preferred a little less, and the reverse.

        Args:
            counts_E: ``routing.counts()``; with several ranks their sum, or biases drift apart.
        """
        self.bias_E += rate * (counts_E.float().mean() - counts_E).sign()


def rows_of(x: Tensor) -> Tensor:
    """Tokens one under the other: (..., C) to (N, C).

    Raises:
        ValueError: one token without a dimension of rows.
    """
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: give rows of tokens, as x[None] does")
    return x.flatten(0, -2)


def check_logits(logits_NE: Tensor, name: str) -> None:
    """Refuse scores that are not finite: with them no expert is the best.

    Raises:
        FloatingPointError: says of which layer, and for what share of the tokens.
    """
    if isinstance(logits_NE, FakeTensor) or logits_NE.is_meta:
        return  # shapes without numbers
    wrong = int((~logits_NE.detach().isfinite().all(-1)).sum())
    if wrong:
        share = 100 * wrong / len(logits_NE)
        raise FloatingPointError(
            f"the router of {name} gives NaN or infinity for {wrong} of {len(logits_NE)} tokens "
            f"({share:.3g}%): lower the learning rate, clip gradients, or add the z-loss"
        )


class Experts(nn.Module):
    """``num_experts`` MLPs of the same size: one tensor for all their first matrices, and so on."""

    def __init__(self, width: int, num_experts: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.up_bias = nn.Parameter(torch.empty(num_experts, hidden))
        self.down = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.down_bias = nn.Parameter(torch.empty(num_experts, width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """N(0, 0.02) as in our GPT, biases zero."""
        for matrix in (self.up, self.down):
            nn.init.normal_(matrix, std=0.02)
        for bias in (self.up_bias, self.down_bias):
            bias.zero_()

    def one(self, x_mC: Tensor, expert: int) -> Tensor:
        """What one expert says to its tokens. Shape: (m, C) to (m, C)."""
        tensors = self.up, self.up_bias, self.down, self.down_bias
        return _mlp(x_mC, *(tensor[expert] for tensor in tensors))

    def forward(self, x_MC: Tensor, counts: list[int]) -> Tensor:
        """Rows sorted by expert, ``counts[e]`` of them for expert e. Shape: (M, C) to (M, C)."""
        # Not up[e]: the gradient of a place in a tensor is as large as the whole tensor
        each = [tensor.unbind() for tensor in (self.up, self.up_bias, self.down, self.down_bias)]
        return torch.cat([_mlp(*parts) for parts in zip(x_MC.split(counts), *each, strict=True)])


def _mlp(x_mC: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    return torch.addmm(down_bias, F.gelu(torch.addmm(up_bias, x_mC, up)), down)


def capacity(num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> int:
    """Copies that one expert takes: its even share times the factor, rounded up.

    Raises:
        ValueError: a factor that is not above 0.
    """
    check_experts(num_experts, top_k, capacity_factor)
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
    N, K = weights_NK.shape
    weighted_MC = y_MC * weights_NK.flatten()[copies_M, None]  # float32, as the weights are
    sums_NC = weighted_MC.new_zeros(N, y_MC.size(1))
    return sums_NC.index_add(0, copies_M // K, weighted_MC).to(y_MC.dtype)


def balance_loss(routing: Routing, counts_E: Tensor) -> Tensor:
    """1 where every expert gets the same; more the more uneven. Gradient through the scores alone.

    Args:
        counts_E: ``routing.counts()``: what was asked for, not what was left after dropping.

    Source: "Switch Transformers", equations 4 to 6.
    """
    if not len(routing.logits_NE):  # a rank without tokens
        return routing.logits_NE.sum()
    share_E = counts_E / counts_E.sum()
    return share_E.numel() * (share_E * routing.logits_NE.softmax(-1).mean(0)).sum()


def z_loss(routing: Routing) -> Tensor:
    """The mean of (log of the sum of exp)^2: holds it near 0. Source: "ST-MoE", equation 5."""
    return routing.logits_NE.logsumexp(-1).square().sum() / max(1, len(routing.logits_NE))


class MoE(nn.Module):
    """A feed-forward layer of experts, in one process.

    Args:
        width: C.
        hidden: F, width inside an expert; 4 C as in a dense MLP by default.
        shared: an expert beside the routed ones that every token uses.
        capacity_factor: an expert takes that many times its even share; ``None``: never drops.
        name: how an error calls the layer.

    Raises:
        ValueError: ``top_k`` is not from 1 to ``num_experts``, a capacity that is not above 0, or
            a size that is not a whole number.
        FloatingPointError: in forward, where the router's scores are not finite.

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
        name: str = "this layer",
    ) -> None:
        check_experts(num_experts, top_k, capacity_factor)
        check_size("width", width)
        hidden = 4 * width if hidden is None else hidden
        check_size("hidden", hidden)
        super().__init__()
        self.router = Router(width, num_experts, top_k)
        self.experts = Experts(width, num_experts, hidden)
        self.shared = shared
        self.num_experts, self.top_k, self.capacity_factor = num_experts, top_k, capacity_factor
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        x_NC = rows_of(x)
        self.routing = routing = self.router(x_NC)
        check_logits(routing.logits_NE, self.name)
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


class LoopedMoE(MoE):
    """The same layer as one would write it first: a loop over experts, with a mask for each.

    Raises:
        ValueError: with a ``capacity_factor``: this one drops nothing.
    """

    def __init__(self, width: int, **options: Any) -> None:
        super().__init__(width, **options)
        if self.capacity_factor is not None:
            raise ValueError(
                f"capacity_factor={self.capacity_factor} needs places to be counted, which this "
                "loop does not: take MoE, or capacity_factor=None"
            )

    def forward(self, x: Tensor) -> Tensor:
        x_NC = rows_of(x)
        self.routing = routing = self.router(x_NC)
        check_logits(routing.logits_NE, self.name)
        self.counts_E, self.num_dropped = routing.counts(), 0
        y_NC = torch.zeros_like(x_NC)
        for expert in range(self.num_experts):
            mask_NK = routing.experts_NK == expert
            mine_N = mask_NK.any(1)
            weight_N1 = (routing.weights_NK * mask_NK).sum(1, keepdim=True)
            said_mC = self.experts.one(x_NC[mine_N], expert)
            y_NC[mine_N] += (weight_N1[mine_N] * said_mC).to(y_NC.dtype)
        if self.shared is not None:
            y_NC = y_NC + self.shared(x_NC)
        return y_NC.view_as(x)
