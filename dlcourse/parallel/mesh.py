"""Parallelisms composed: ranks as a grid, a parallelism along each of its sides.

                       tensor 0   tensor 1
    data 0  pipeline 0    0          1         the layers' first half, cut in two
            pipeline 1    2          3         the second half
    data 1  pipeline 0    4          5         the same again, on other sequences
            pipeline 1    6          7

Ranks of one row of the grid share their layers' matrices and talk most (four all-reduces a layer),
so they come first in the numbering and sit closest on a real cluster: inside one machine. Stages
pass activations on, and the copies along "data" meet once a step.

    mesh = make_mesh(data=2, pipeline=2, tensor=2)
    model = MeshParallel(GPT(), mesh, num_micro_batches=4)
    losses = train(model, Corpus(), steps=5)

Source: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
Megatron-LM", SC 2021, https://arxiv.org/abs/2104.04473.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dlcourse.corpus import Corpus, sequences_per_rank
from dlcourse.models.gpt import GPT
from dlcourse.models.targets import shares, total_targets, weighted
from dlcourse.parallel.data import BucketedDataParallel
from dlcourse.parallel.divisibility import check_mesh, check_tensor_parallel
from dlcourse.parallel.loop import run_steps
from dlcourse.parallel.pipeline import PipelineParallel
from dlcourse.parallel.pipeline_schedules import one_f_one_b
from dlcourse.parallel.replicas import broadcast_module
from dlcourse.parallel.tensor import parallel_blocks, tensor_parallel
from dlcourse.parallel.tensor_vocabulary import check_embedding
from dlcourse.parallel.zero import ZeRO1

SIDES = ("data", "pipeline", "tensor")


def make_mesh(*, data: int = 1, pipeline: int = 1, tensor: int = 1) -> DeviceMesh:
    """All ranks as a grid with the sides "data", "pipeline" and "tensor".

    Raises:
        ValueError: the sides do not multiply out to the number of ranks.
    """
    check_mesh(data=data, pipeline=pipeline, tensor=tensor, world_size=dist.get_world_size())
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return init_device_mesh(device, (data, pipeline, tensor), mesh_dim_names=SIDES)


class _Whole(nn.Module):
    """What is left where there is no pipeline: forward and backward of the batch, in one call."""

    def __init__(self, gpt: nn.Module, num_micro_batches: int) -> None:
        super().__init__()
        self.gpt, self.num_micro_batches = gpt, num_micro_batches

    def step(self, tokens_BT: Tensor, targets_BT: Tensor, total: Tensor | None = None) -> Tensor:
        xs, ys = (half.chunk(self.num_micro_batches) for half in (tokens_BT, targets_BT))
        losses = []
        for x_BT, y_BT, share in zip(xs, ys, shares(ys, total), strict=True):
            loss = weighted(self.gpt(x_BT, y_BT), share)
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()


class MeshParallel(nn.Module):
    """A GPT over a mesh: cut by heads and columns, then by layers, then copied.

    Args:
        gpt: used up; it starts from rank 0's parameters everywhere.
        mesh: from ``make_mesh``.
        num_micro_batches: into how many parts a rank's share of the batch is cut.
        zero: keep the optimizer's state in shards along "data" (ZeRO stage 1). Stage 2 and 3 are
            not for pipelines: they would send every micro-batch's gradients.

    Raises:
        ValueError: heads, width or layers do not divide by their side of the mesh, or all of the
            model is frozen; in every rank.
    """

    def __init__(
        self, gpt: GPT, mesh: DeviceMesh, *, num_micro_batches: int = 1, zero: bool = False
    ) -> None:
        super().__init__()
        config, size = gpt.config, {side: mesh[side].size() for side in SIDES}
        check_tensor_parallel(n_head=config.n_head, n_embd=config.n_embd, size=size["tensor"])
        if not any(parameter.requires_grad for parameter in gpt.parameters()):
            raise ValueError("gpt has no trainable parameter: set requires_grad before")
        check_embedding(gpt.token_embedding)
        broadcast_module(gpt)
        self.config, self.num_micro_batches = config, num_micro_batches
        self.mesh, self.groups = mesh, {side: mesh.get_group(side) for side in SIDES}
        self.layers: PipelineParallel | _Whole
        if size["pipeline"] > 1:
            if size["tensor"] > 1:  # stages know the whole vocabulary only
                parallel_blocks(gpt, self.groups["tensor"])
            schedule = one_f_one_b(num_ranks=size["pipeline"], num_micro_batches=num_micro_batches)
            self.layers = PipelineParallel(gpt, schedule, process_group=self.groups["pipeline"])
        else:
            cut = tensor_parallel(gpt, self.groups["tensor"]) if size["tensor"] > 1 else gpt
            self.layers = _Whole(cut, num_micro_batches)
        # One stage may be frozen as a whole: it has no optimizer state to share out
        trains = any(parameter.requires_grad for parameter in self.layers.parameters())
        self.copies = self.make_copies(zero and trains)

    def make_copies(self, zero: bool) -> Any:
        """What averages the gradients of this stage's copies."""
        copies = ZeRO1 if zero else BucketedDataParallel
        return copies(self.layers, process_group=self.groups["data"])

    def optimizer(self, lr: float = 1e-3) -> torch.optim.Optimizer:
        """AdamW over what this rank has to update."""
        mine = self.copies.shards if isinstance(self.copies, ZeRO1) else self.parameters()
        return torch.optim.AdamW(mine, lr=lr)

    def step(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Forward, backward and the copies' mean; adds to every gradient.

        Returns the mean loss, the same in all ranks.
        Every target counts the same, in whichever copy and micro-batch it is: 16 bytes are sent.

        Raises:
            ValueError: in every rank, where one of them has a batch that does not divide into the
                micro-batches, is too long, or holds what is not in the vocabulary.
        """
        total = total_targets(
            tokens_BT,
            targets_BT,
            self.config,
            accumulate=self.num_micro_batches,
            num_ranks=self.mesh.size(),  # those of one copy have the same batch
        )
        shards = self.copies.shards if isinstance(self.copies, ZeRO1) else []
        before = [shard.grad if shard.grad is None else shard.grad.clone() for shard in shards]
        if isinstance(self.copies, ZeRO1):
            self.copies.start_gradients()
        loss = self.layers.step(tokens_BT, targets_BT, total / self.mesh.size())
        self.copies.sync_gradients()
        for shard, grad in zip(shards, before, strict=True):
            if grad is not None:  # of an earlier step(), as one process adds them
                shard.grad = grad if shard.grad is None else shard.grad + grad
        # The last stage knows the loss; the other stages give zeros, of what type it may be
        loss = loss.to(torch.promote_types(loss.dtype, torch.float32))
        for side in ("pipeline", "data"):
            dist.all_reduce(loss, group=self.groups[side])
        return loss / dist.get_world_size(self.groups["data"])

    def sync_parameters(self) -> None:
        """After the optimizer's step."""
        if isinstance(self.copies, ZeRO1):
            self.copies.sync_parameters()


def train(
    model: MeshParallel,
    corpus: Corpus,
    *,
    steps: int,
    batch_size: int = 16,
    block: int = 128,
    lr: float = 1e-3,
) -> list[float]:
    """Train in every rank, on ``batch_size`` sequences a step over all ranks together.

    Returns:
        The loss of each step over the whole batch: the same numbers in every rank.

    Raises:
        ValueError: the copies along "data" and the micro-batches do not divide ``batch_size``.
    """
    copy, copies = (f(model.groups["data"]) for f in (dist.get_rank, dist.get_world_size))
    micro_batch = sequences_per_rank(
        batch_size, world_size=copies, accumulate=model.num_micro_batches
    )
    device = next(model.parameters()).device
    optimizer = model.optimizer(lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model.step(tokens_BT, targets_BT)
        optimizer.step()
        model.sync_parameters()
        return loss

    # Ranks of one copy read the same tokens: one of them counts
    counts = model.mesh.get_local_rank("pipeline") == model.mesh.get_local_rank("tensor") == 0
    return run_steps(
        step,
        corpus,
        steps=steps,
        device=device,
        counts=counts,
        rank=copy,
        world_size=copies,
        micro_batch=micro_batch,
        block=block,
    )
