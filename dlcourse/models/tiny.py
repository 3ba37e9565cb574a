"""The smallest language models of two architectures: dense, and mixture of experts (MoE).

Lesson 15 trains both; lesson 07 builds such models in full. Each predicts the next byte from the
byte before it, so that a training step takes a millisecond.

Shape suffixes: B sequences, T positions, N = B * T tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.models.gpt import check_shapes

ARCHITECTURES = ("dense", "moe")
WIDTH = 32  # C, features of a token


def mlp(width: int) -> nn.Sequential:
    """Two linear layers around a GELU; the hidden layer is four times as wide."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class MoE(nn.Module):
    """Several MLPs (experts), of which each token uses one: the one that the router prefers.

    Source: Fedus et al., "Switch Transformers", 2021, https://arxiv.org/abs/2101.03961.
    """

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, num_experts, bias=False)
        self.experts = nn.ModuleList(mlp(width) for _ in range(num_experts))

    def forward(self, x_NC: Tensor) -> Tensor:
        with torch.autocast(x_NC.device.type, enabled=False):  # small differences decide: float32
            logits_NE = F.linear(x_NC.float(), self.router.weight.float())
        weight_N, chosen_N = logits_NE.softmax(dim=-1).max(dim=-1)
        y_NC = torch.zeros_like(x_NC)
        for number, expert in enumerate(self.experts):
            mine = chosen_N == number
            y_NC[mine] = (weight_N[mine, None] * expert(x_NC[mine])).to(y_NC.dtype)
        return y_NC


class TinyLM(nn.Module):
    """Embedding, one feed-forward layer, output layer; ``architecture`` says which layer.

    Args:
        architecture: "dense" (one MLP) or "moe" (four MLPs and a router).
        moe: the class of the MoE layer; a lesson gives its own copy.

    Raises:
        ValueError: ``architecture`` is neither.
    """

    def __init__(
        self,
        architecture: str,
        *,
        moe: Callable[[int, int], nn.Module] = MoE,
    ) -> None:
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture={architecture!r} is unknown: give one of {', '.join(ARCHITECTURES)}"
            )
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(256, WIDTH)
            self.norm = nn.LayerNorm(WIDTH)
            self.feed_forward = mlp(WIDTH) if architecture == "dense" else moe(WIDTH, 4)
            self.head = nn.Linear(WIDTH, 256)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy of the next byte."""
        check_shapes(tokens_BT, targets_BT)
        x_NC = self.embedding(tokens_BT).flatten(0, 1)
        x_NC = x_NC + self.feed_forward(self.norm(x_NC))
        return F.cross_entropy(self.head(x_NC), targets_BT.flatten())

    def num_parameters(self) -> int:
        """How many numbers training changes."""
        return sum(parameter.numel() for parameter in self.parameters())

    def num_active_parameters(self) -> int:
        """How many of them one token uses: of the experts, only one takes part."""
        experts = getattr(self.feed_forward, "experts", [])
        unused = sum(parameter.numel() for e in experts[1:] for parameter in e.parameters())
        return self.num_parameters() - unused
