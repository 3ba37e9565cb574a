"""One training loop in which every memory technique can be switched on, alone or together.

    training = Training(GPT(), Recipe(precision="master", accumulate=4, checkpoint=True, stage=3))
    loss = training.step(tokens_BT, targets_BT)

The order matters. Checkpoints go around the blocks first; the parameters get their type next; ZeRO
comes last, since it makes one flat tensor of each block, checkpoint included. Then the optimizer is
given what is left for this rank. Each technique has a lesson of its own, and its own module here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.formulas.recipe import Recipe
from dlcourse.measure import mark_step
from dlcourse.models.gpt import GPT
from dlcourse.models.targets import shares, total_targets, weighted
from dlcourse.parallel.replicas import broadcast_module, refuse_own_gradients
from dlcourse.parallel.tensor import TensorParallelGPT
from dlcourse.parallel.tensor_vocabulary import check_embedding
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.training.accumulation import split
from dlcourse.training.checkpointing.segments import checkpoint_blocks, early_stop
from dlcourse.training.mixed_precision.master_adamw import MasterAdamW
from dlcourse.training.mixed_precision.support import check_precision

_STAGES: dict[int, type[ZeRO1]] = {1: ZeRO1, 2: ZeRO2, 3: ZeRO3}


class Training:
    """A GPT, its optimizer, and the step that a recipe makes of them.

    Args:
        gpt: a ``GPT``, which may be ``tensor_parallel``; it is changed in place.
        recipe: what to switch on.
        lr: learning rate.
        process_group: the ranks that share a step, each with a batch of its own. ZeRO divides
            over them; without a stage gradients are averaged (naive data parallelism).

    Raises:
        ValueError: 16 bits on a device that does not compute in them; nothing to train; an
            embedding whose options are another thing for a part of a batch.
    """

    def __init__(
        self,
        gpt: GPT | TensorParallelGPT,
        recipe: Recipe,
        *,
        lr: float = 1e-3,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.recipe, self.config, self.process_group = recipe, gpt.config, process_group
        self.world_size = dist.get_world_size(process_group) if dist.is_initialized() else 1
        self.device = next(gpt.parameters()).device
        if recipe.precision != "float32":
            check_precision(torch.bfloat16, self.device)
        if not any(parameter.requires_grad for parameter in gpt.parameters()):
            raise ValueError("gpt has no trainable parameter: set requires_grad before")
        check_embedding(gpt.token_embedding)
        if recipe.checkpoint:
            checkpoint_blocks(gpt, [1] * len(gpt.blocks), early_stop)
        if recipe.precision in ("master", "bfloat16"):
            for parameter in gpt.parameters():  # module.to() cannot do it to fake tensors
                parameter.data = parameter.data.to(torch.bfloat16)
        if not recipe.stage:
            refuse_own_gradients(gpt, "the ranks' mean is made before")
        if self.world_size > 1 and not recipe.stage:  # ZeRO does it by itself
            broadcast_module(gpt, process_group=process_group)
        self.model: GPT | TensorParallelGPT | ZeRO1 = gpt
        self.parameters = [p for p in gpt.parameters() if p.requires_grad]
        if recipe.stage:
            self.model = _STAGES[recipe.stage](gpt, process_group=process_group)
            self.parameters = self.model.shards
        self.optimizer = _optimizer(recipe, self.device)(self.parameters, lr=lr)

    def autocast(self) -> AbstractContextManager:
        """For forward alone; backward runs in the types that forward has left."""
        if self.recipe.precision != "autocast":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def step(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """One step on a batch. The gradients stay until the next one.

        Returns:
            This rank's share of the loss, a number without a graph. Its mean over the ranks is
            the mean loss over all their targets.

        Raises:
            ValueError: in every rank, where one of them has a batch that the micro-batches do not
                divide, that is too long, or that holds what is not in the vocabulary.
        """
        accumulate, model = self.recipe.accumulate, self.model
        counts = self._shares(tokens_BT, targets_BT)  # refuses a wrong batch, in every rank
        parts = split(tokens_BT, targets_BT, accumulate=accumulate)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for (tokens_MT, targets_MT), share in zip(parts, counts, strict=True):
            with self.autocast():
                loss = weighted(model(tokens_MT, targets_MT), share)
            loss.backward()
            total += loss.detach()
            del loss  # or it would be there when the next micro-batch begins
        if isinstance(model, ZeRO1):
            model.sync_gradients()
        elif self.world_size > 1:
            self._average_gradients()
        self.optimizer.step()
        if isinstance(model, ZeRO1):
            model.sync_parameters()
        mark_step(tokens=tokens_BT.numel(), loss=total)
        return total

    def _average_gradients(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:  # not used here; the others wait for this rank's share
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= self.world_size  # before the sum: 16 bits could overflow
            dist.all_reduce(parameter.grad, group=self.process_group)

    def _shares(self, tokens_BT: Tensor, targets_BT: Tensor) -> list[Tensor]:
        """What each micro-batch counts for, so that every target of every rank counts the same."""
        n, ranks = self.recipe.accumulate, self.world_size
        total = total_targets(
            tokens_BT,
            targets_BT,
            self.config,
            accumulate=n,
            num_ranks=ranks,
            process_group=self.process_group,
        )
        return shares(targets_BT.chunk(n), total / ranks)

    def weights(self) -> Tensor:
        """All parameters of the model in one row, float32, to compare. In all ranks."""
        model = self.model
        module = model.module if isinstance(model, ZeRO1) else model
        with model.gathered() if isinstance(model, ZeRO3) else nullcontext():
            return torch.cat([p.detach().float().flatten() for p in module.parameters()])


def _optimizer(recipe: Recipe, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    if recipe.precision == "master":
        return MasterAdamW
    if recipe.optimizer == "adamw":
        # On a GPU one kernel for all tensors, in place: the default there would make buffers as
        # large as the parameters
        return partial(torch.optim.AdamW, fused=device.type == "cuda" or None)
    return partial(torch.optim.SGD, momentum=0.9 if recipe.optimizer == "momentum" else 0.0)
