"""One GPT, four architectures: dense, mixture of experts, sparse, hybrid.

A layer has two parts. The mixer lets a position learn of those before it; the feed-forward layer
works on each position alone. An architecture says which mixer and which feed-forward layer each
layer has; the rest is the GPT of ``gpt.py``, and the dense one *is* that GPT, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlcourse.formulas.sizes import ArchitectureConfig
from dlcourse.models import gpt
from dlcourse.models.linear_recurrent import LinearRecurrence
from dlcourse.models.moe import MoE
from dlcourse.models.sparse import BlockSparseMLP, SlidingWindowAttention

MIXERS: dict[str, Callable[[ArchitectureConfig], nn.Module]] = {
    "attention": gpt.Attention,
    "window": SlidingWindowAttention,
    "recurrent": LinearRecurrence,
}


class MLP(gpt.MLP):
    """The MLP of ``gpt.py``, of any width inside."""

    def __init__(self, width: int, hidden: int) -> None:
        nn.Module.__init__(self)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)


def feed_forward(config: ArchitectureConfig, kind: str, layer: int) -> nn.Module:
    """The feed-forward layer of one layer."""
    C = config.n_embd
    if kind == "block_sparse":
        return BlockSparseMLP(config)
    if kind == "mlp":
        return MLP(C, config.mlp_width)
    return MoE(
        C,
        num_experts=config.num_experts,
        top_k=config.top_k,
        hidden=config.expert_width,
        shared=MLP(C, config.shared_hidden) if config.shared_hidden else None,
        capacity_factor=config.capacity_factor,
        name=f"layer {layer}",
    )


class Block(nn.Module):
    """One layer of the pattern. Its parts have the names of the dense block's in ``gpt.py``."""

    def __init__(self, config: ArchitectureConfig, layer: int) -> None:
        super().__init__()
        mixer, kind = config.layers()[layer]
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = MIXERS[mixer](config)
        self.mlp_norm = nn.LayerNorm(config.n_embd)
        self.mlp = feed_forward(config, kind, layer)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC))
        return x_BTC + self.mlp(self.mlp_norm(x_BTC))


class ArchitectureGPT(gpt.GPT):
    """A GPT of any ``ArchitectureConfig``. The same ``seed`` gives the same weights everywhere."""

    config: ArchitectureConfig

    def __init__(self, config: ArchitectureConfig | None = None, *, seed: int = 0) -> None:
        config = config or ArchitectureConfig()
        super().__init__(config, seed=seed)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """As the GPT's, and routers that prefer no expert."""
        super().init_weights(seed)
        for moe in self.moe_layers().values():
            moe.router.bias_E.zero_()

    def moe_layers(self) -> dict[int, MoE]:
        """The layers of experts, by the number of their layer."""
        layers = ((i, block.mlp) for i, block in enumerate(self.blocks))
        return {i: mlp for i, mlp in layers if isinstance(mlp, MoE)}
