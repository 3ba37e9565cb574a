"""Tensor parallelism of the GPT: matrices cut over the ranks, the same batch in all of them.

    x ─ enter ─ q, k, v by columns ─ attention of my heads ─ proj by rows ─ leave ─ + x
    x ─ enter ─ up by columns ─ GELU ─ down by rows ─ leave ─ + x

Entering costs an all-reduce in backward, leaving one in forward: four for each layer and step.

    model = tensor_parallel(GPT())              # keeps 1/p of every matrix
    loss = model(tokens, targets)               # the same tokens in all ranks, the same loss
    loss.backward()
    optimizer.step()                            # each rank updates what it holds

To clip gradients take ``clip_grad_norm_`` of clipping.py: torch's would find another norm in each
rank, and LayerNorms would drift apart. So do optimizers that look at a whole matrix or model, as
LBFGS, Adafactor and Muon do: take one that treats each number for itself, such as SGD or AdamW.

Nothing compares the ranks' tokens, which would take a message in every step. With other tokens the
loss is nobody's; with batches of other shapes Gloo ends the process or waits.

The layers are in tensor_layers.py, embedding and loss in tensor_vocabulary.py.
Source: Shoeybi et al., "Megatron-LM", 2019, https://arxiv.org/abs/1909.08053, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from dlcourse.collectives.p2p import Group
from dlcourse.corpus import Corpus
from dlcourse.models.gpt import GPT, MLP, Attention
from dlcourse.parallel.divisibility import check_tensor_parallel
from dlcourse.parallel.loop import run_steps
from dlcourse.parallel.replicas import broadcast_module, refuse_divided_experts, sync_gradients
from dlcourse.parallel.sendable import group_size
from dlcourse.parallel.tensor_checks import check_vocabulary, check_whole
from dlcourse.parallel.tensor_layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to,
    gather,
    reduce_from,
    shard,
)
from dlcourse.parallel.tensor_vocabulary import VocabParallelEmbedding, parallel_cross_entropy

__all__ = [
    "ColumnParallelLinear",
    "RowParallelLinear",
    "TensorParallelGPT",
    "VocabParallelEmbedding",
    "copy_to",
    "gather",
    "parallel_attention",
    "parallel_blocks",
    "parallel_cross_entropy",
    "parallel_mlp",
    "reduce_from",
    "shard",
    "tensor_parallel",
    "train",
]

Crossing = Callable[[Tensor, Group], Tensor]
Part = TypeVar("Part", bound=nn.Module)


def parallel_mlp(mlp: MLP, process_group: Group, *, enter: Crossing, leave: Crossing) -> None:
    """Cut an MLP in place: ``up`` by columns, ``down`` by rows."""
    mlp.up = ColumnParallelLinear(mlp.up, process_group, enter=enter)
    mlp.down = RowParallelLinear(mlp.down, process_group, leave=leave)


def parallel_attention(
    attention: Attention, process_group: Group, *, enter: Crossing, leave: Crossing
) -> None:
    """Cut attention in place, by heads: each rank has ``n_head / p`` of them, whole."""
    attention.n_head //= dist.get_world_size(process_group)
    for name in ("q", "k", "v"):
        linear = ColumnParallelLinear(getattr(attention, name), process_group, enter=None)
        setattr(attention, name, linear)
    attention.proj = RowParallelLinear(attention.proj, process_group, leave=leave)
    # All three read the same x: enter once, before them, and backward sums once
    attention.register_forward_pre_hook(lambda module, args: (enter(args[0], process_group),))


def parallel_blocks(
    model: Part,
    process_group: Group = None,
    *,
    enter: Crossing = copy_to,
    leave: Crossing = reduce_from,
) -> Part:
    """Cut every attention and MLP inside ``model`` in place; returns ``model``.

    Each layer still takes and gives the whole width, so this does for any part of a GPT, a
    pipeline stage for example. The ranks must hold equal models already.

    Raises:
        ValueError: heads or width do not divide by the ranks, ``model`` was cut before, or has a
            layer that cannot be cut: a subclass with a forward of its own, hooks, dropout.
    """
    check_whole(model)
    layers = [module for module in model.modules() if isinstance(module, Attention | MLP)]
    for layer in layers:
        if isinstance(layer, Attention):
            n_embd, size = layer.q.in_features, group_size(process_group)
            check_tensor_parallel(n_head=layer.n_head, n_embd=n_embd, size=size)
    for layer in layers:
        if isinstance(layer, Attention):
            parallel_attention(layer, process_group, enter=enter, leave=leave)
        else:
            parallel_mlp(layer, process_group, enter=enter, leave=leave)
    return model


class TensorParallelGPT(nn.Module):
    """A GPT whose blocks, vocabulary and loss are cut. Parameters keep the GPT's names.

    Use ``tensor_parallel`` to make one.
    """

    def __init__(
        self,
        gpt: GPT,
        process_group: Group = None,
        *,
        enter: Crossing = copy_to,
        leave: Crossing = reduce_from,
    ) -> None:
        super().__init__()
        self.config, self.process_group = gpt.config, process_group
        tied = gpt.head.weight is gpt.token_embedding.weight
        self.token_embedding = VocabParallelEmbedding(
            gpt.token_embedding, process_group, leave=leave
        )
        self.position_embedding = gpt.position_embedding
        self.blocks = parallel_blocks(gpt.blocks, process_group, enter=enter, leave=leave)
        self.norm = gpt.norm
        self.head = ColumnParallelLinear(gpt.head, process_group, enter=enter, pad=True)
        if tied:
            self.head.weight = self.token_embedding.weight
        # Whoever still holds the GPT shall not keep the whole matrices alive
        gpt.token_embedding, gpt.head = self.token_embedding, self.head

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """As ``GPT.forward``, with the same tokens in all ranks."""
        T, V = tokens_BT.size(1), self.config.vocab_size
        if self.config.block_size < T:
            raise ValueError(
                f"a sequence of {T} tokens does not fit block_size={self.config.block_size}: "
                "give shorter sequences or a larger block_size"
            )
        x_BTC = self.token_embedding(tokens_BT)
        x_BTC = x_BTC + self.position_embedding(self.positions(T, tokens_BT.device))
        for block in self.blocks:
            x_BTC = block(x_BTC)
        logits_BTV = self.head(self.norm(x_BTC))  # this rank's part, (B, T, V/p)
        if targets_BT is None:
            return gather(logits_BTV, self.process_group)[..., :V]
        return parallel_cross_entropy(
            logits_BTV.flatten(0, 1), targets_BT.flatten(), self.process_group, vocab_size=V
        )

    def positions(self, T: int, device: torch.device) -> Tensor:
        """The positions of this rank's part of the stream: here all of them. Shape: (T,)."""
        return torch.arange(T, device=device)

    def num_parameters(self) -> int:
        """How many numbers this rank holds; a shared matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


def tensor_parallel(
    gpt: GPT, process_group: Group | DeviceMesh = None, *, vocabulary: bool = True
) -> GPT | TensorParallelGPT:
    """Cut a GPT over the ranks of ``process_group``. It starts from the first rank's parameters.

    Args:
        gpt: used up: its layers are changed and go into the model that is returned.
        process_group: the ranks, or a mesh of one dimension; all ranks by default.
        vocabulary: cut embedding, output layer and loss too; else the blocks only.

    Raises:
        ValueError: heads or width do not divide by the ranks, ``gpt`` was cut before, or has a
            layer that cannot be cut: a subclass with a forward of its own, hooks, dropout.
    """
    if isinstance(process_group, DeviceMesh):
        process_group = process_group.get_group()
    size = group_size(process_group)
    check_tensor_parallel(n_head=gpt.config.n_head, n_embd=gpt.config.n_embd, size=size)
    check_whole(gpt)
    if vocabulary:
        check_vocabulary(gpt)
    broadcast_module(gpt, process_group=process_group)
    if vocabulary:
        return TensorParallelGPT(gpt, process_group)
    return parallel_blocks(gpt, process_group)


def train(
    model: nn.Module,
    corpus: Corpus,
    *,
    steps: int,
    batch_size: int = 8,
    block: int = 128,
    lr: float = 1e-3,
    process_group: Group = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[float]:
    """Train in every rank, all on the same ``batch_size`` sequences a step.

    Args:
        model: from ``tensor_parallel`` or ``sequence_parallel``.
        process_group: the ranks that share the model.
        optimizer: AdamW with learning rate ``lr`` by default.

    Returns:
        The loss of each step: the same numbers in every rank.
    """
    refuse_divided_experts(model)
    device = next(model.parameters()).device
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model(tokens_BT, targets_BT)
        loss.backward()
        sync_gradients(model)  # sequence parallelism has some
        optimizer.step()
        return loss

    counts = dist.get_rank(process_group) == 0  # all ranks read the same tokens
    return run_steps(
        step, corpus, steps=steps, device=device, micro_batch=batch_size, block=block, counts=counts
    )
