"""A small GPT that reads bytes: the model that the lessons train, split and shard.

Shape suffixes:
    B  sequences in the batch        C  width of the model (n_embd)
    T  positions in a sequence       H  attention heads, D = C / H values each
    V  vocabulary: the 256 values that a byte can take
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.formulas.sizes import GPTConfig


class Attention(nn.Module):
    """Causal self-attention: each position reads from itself and the positions before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        # No bias on q, k and v. Softmax cancels a bias on k, so its true gradient is zero, and
        # Adam would blow the rounding errors up to full steps: two equal runs would drift apart.
        self.q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.k = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.v = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x_BTC: Tensor) -> Tensor:
        q_BHTD, k_BHTD, v_BHTD = (
            linear(x_BTC).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True)
        return self.proj(y_BHTD.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """Two linear layers around a GELU; the hidden layer is four times as wide."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTC)))


class Block(nn.Module):
    """One transformer layer: attention and MLP, each added to the stream it reads from."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC))
        return x_BTC + self.mlp(self.mlp_norm(x_BTC))


class GPT(nn.Module):
    """A decoder-only transformer. The same ``seed`` gives the same weights on every machine.

    Args:
        config: sizes; the default is the model of the lessons.
        seed: where the random weights start; torch's global random state does not matter.
    """

    def __init__(self, config: GPTConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config = config or GPTConfig()
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every matrix anew from ``seed``, as GPT-2 does: N(0, 0.02), biases zero."""
        if self.config.tie_embeddings:  # here, because ``to_empty`` makes two matrices of one
            self.head.weight = self.token_embedding.weight
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue  # a model without storage: nothing to fill
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() > 1:
                # What enters the residual stream adds up over 2 n_layer branches: keep its variance
                residual = name.endswith(("proj.weight", "down.weight", "down"))
                std = 0.02 / (2 * self.config.n_layer) ** 0.5 if residual else 0.02
                # Drawn on the CPU in float32, so that device and dtype do not change the numbers
                drawn = torch.randn(
                    parameter.shape, generator=generator, device="cpu", dtype=torch.float32
                )
                parameter.copy_(drawn * std)
            else:
                parameter.fill_(1.0)  # scale of a LayerNorm

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for the next token; with ``targets_BT`` their mean cross-entropy.

        Raises:
            ValueError: the sequences are longer than ``config.block_size``, or tokens and targets
                are not of the same two dimensions.
        """
        check_shapes(tokens_BT, targets_BT)
        T = tokens_BT.size(1)
        if self.config.block_size < T:
            raise ValueError(
                f"a sequence of {T} tokens does not fit block_size={self.config.block_size}: "
                "give shorter sequences or a larger block_size"
            )
        positions_T = torch.arange(T, device=tokens_BT.device)
        x_BTC = self.token_embedding(tokens_BT) + self.position_embedding(positions_T)
        for block in self.blocks:
            x_BTC = block(x_BTC)
        logits_BTV = self.head(self.norm(x_BTC))
        if targets_BT is None:
            return logits_BTV
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

    def num_parameters(self) -> int:
        """How many numbers training changes; a shared matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


def check_shapes(tokens_BT: Tensor, targets_BT: Tensor | None) -> None:
    """Refuse tokens and targets that do not go together: flat, the loss could not tell."""
    shape = None if targets_BT is None else targets_BT.shape
    if tokens_BT.dim() != 2 or shape not in (None, tokens_BT.shape):
        targets = "" if shape is None else f" and targets of shape {tuple(shape)}"
        raise ValueError(
            f"tokens of shape {tuple(tokens_BT.shape)}{targets}: both must be "
            "(sequences, positions), the same"
        )
