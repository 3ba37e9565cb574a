"""Pipeline parallelism: each rank has some layers, and executes its row of a schedule.

model = PipelineParallel(GPT(), one_f_one_b(num_ranks=4, num_micro_batches=8))
loss = model.step(tokens, targets)    # forward and backward of the batch, in all ranks
optimizer.step()                      # each rank updates its own layers
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.collectives.p2p import exchange
from dlcourse.corpus import Corpus
from dlcourse.models.gpt import GPT
from dlcourse.models.targets import check_batch, shares
from dlcourse.parallel.loop import run_steps
from dlcourse.parallel.pipeline_checks import check_grad_enabled, check_stages
from dlcourse.parallel.pipeline_messages import Mailbox
from dlcourse.parallel.pipeline_schedules import Action, Schedule
from dlcourse.parallel.pipeline_simulation import Gantt, validate
from dlcourse.parallel.pipeline_stages import (
    Sleeper,
    SomeLayers,
    Stage,
    StageWorker,
    is_tied,
    split_layers,
)
from dlcourse.parallel.replicas import broadcast_module
from dlcourse.parallel.sendable import group_size
from dlcourse.parallel.tensor_vocabulary import check_embedding


class Runtime:
    """Executes one rank's row of a schedule: wait for what the action needs, do it, send it on.

    Args:
        schedule: for all ranks.
        workers: this rank's chunks, each a ``StageWorker`` (or a ``Sleeper``).
        process_group: as many ranks as the schedule has.
    """

    def __init__(
        self,
        schedule: Schedule,
        workers: Sequence[StageWorker | Sleeper],
        *,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        check_schedule(schedule, group_size(process_group))
        self.schedule, self.workers = schedule, workers
        self.process_group = process_group
        self.rank = dist.get_rank(process_group)
        self.mailbox = Mailbox(schedule, process_group)
        self.spans: list[tuple[float, float, Action]] = []  # of the last step, in seconds

    def run(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        like: Tensor,
        total: Tensor | None = None,
    ) -> list[Tensor]:
        """All of this rank's actions, once.

        Args:
            inputs, targets: for each micro-batch; used by the first and by the last stage.
            like: what travels between stages has its shape, dtype and device.
            total: the number of targets to divide by; by default that of these micro-batches.

        Returns:
            The last stage's outputs, in its rank; an empty list in the others.
        """
        self.mailbox.open(like)
        self.spans, outputs = [], []
        counts = shares(targets, total)
        for action in self.schedule.ranks[self.rank]:
            kind, i, chunk = action
            worker = self.workers[chunk]
            is_last = self.schedule.stage(self.rank, chunk) == self.schedule.num_stages - 1
            arrived = self.mailbox.receive(action)  # None where the action needs no message
            start = time.perf_counter()
            result = None
            if kind == "F" and is_last:
                # The only place that weighs the micro-batches: by their numbers of targets
                x = inputs[i] if arrived is None else arrived
                outputs.append(worker.forward(i, x, targets[i], share=counts[i]))
            elif kind == "F":
                result = worker.forward(i, inputs[i] if arrived is None else arrived)
            elif kind == "BW":
                result = worker.backward(i, arrived)
            elif kind == "B":
                result = worker.backward_input(i, arrived)
            else:
                worker.backward_weight(i)
            self.mailbox.send(action, result)
            self.spans.append((start, time.perf_counter(), action))
        self.mailbox.close()
        return outputs


class PipelineParallel(SomeLayers):
    """A GPT in stages. ``parameters()`` are those of this rank's layers.

    Args:
        model: the same configuration in every rank; the first rank's weights count.
        schedule: who does what when; as many ranks as the process group.
        process_group: the ranks of the pipeline; all of them by default.
        runtime: what executes the schedule; another class of the same form may take its place.

    Raises:
        ValueError: before anything is sent: more stages than layers, ranks that do not match, a
            schedule that is incomplete or deadlocks, a matrix that several stages share.
    """

    def __init__(
        self,
        model: GPT,
        schedule: Schedule,
        *,
        process_group: dist.ProcessGroup | None = None,
        runtime: type[Runtime] = Runtime,
    ) -> None:
        super().__init__()
        check_schedule(schedule, group_size(process_group), model.config.n_layer)
        layers = split_layers(model.config.n_layer, schedule.num_stages)
        check_embedding(model.token_embedding)
        check_stages(model, layers)
        self.is_tied = is_tied(model)
        broadcast_module(model, process_group=process_group)
        rank = dist.get_rank(process_group)
        stages = [schedule.stage(rank, chunk) for chunk in range(schedule.num_chunks)]
        self.config, self.schedule, self.process_group = model.config, schedule, process_group
        self.stages = nn.ModuleList(Stage(model, layers[stage]) for stage in stages)
        self._join_tied()
        splits = any(action.kind == "B" for action in schedule.ranks[rank])
        self.workers = [StageWorker(stage, splits=splits) for stage in self.stages]
        self.runtime = runtime(schedule, self.workers, process_group=process_group)
        self.last_rank = schedule.where(schedule.num_stages - 1)[0]
        self.stage_group = process_group

    def step(self, tokens_BT: Tensor, targets_BT: Tensor, total: Tensor | None = None) -> Tensor:
        """Forward and backward of a batch; adds to every ``.grad``.

        Args:
            total: the number of targets that the loss is divided by; that of the batch by default.

        Returns:
            The mean loss over the batch's targets in the rank of the last stage, 0 in the others.

        Raises:
            ValueError: in every rank, before anything is sent: the batch does not divide into the
                schedule's micro-batches, is too long, or holds what is not in the vocabulary.
            RuntimeError: in ``torch.no_grad()``.
        """
        check_grad_enabled()
        m = self.schedule.num_micro_batches
        check_batch(tokens_BT, targets_BT, self.config, accumulate=m)
        inputs, targets = tokens_BT.chunk(m), targets_BT.chunk(m)
        weight, stage = next(self.parameters()), self.stages[0]
        assert isinstance(stage, Stage)
        like = weight.new_empty((*inputs[0].shape, self.config.n_embd), dtype=stage.stream.dtype)
        tied = self._tied()
        before = [copy.grad.clone() if copy.grad is not None else None for copy in tied]
        for copy in tied:  # so that only this step's gradients are exchanged
            if copy.grad is not None:
                copy.grad.zero_()
        try:
            losses = self.runtime.run(inputs, targets, like, total)
            self._add_tied_gradients(tied)
        finally:
            for worker in self.workers:
                worker.forget()
            for copy, grad in zip(tied, before, strict=True):
                if grad is not None:
                    copy.grad += grad
        return torch.stack(losses).sum() if losses else like.new_zeros(())

    def _join_tied(self) -> None:
        """Where one rank has both ends of the model, a tied matrix stays one parameter."""
        first, last = self._ends()
        if self.is_tied and first and last:
            last.weight = first.weight

    def _tied(self) -> list[Tensor]:
        """This rank's copy of a tied matrix whose other copy is in another rank; else nothing."""
        ends = [layer.weight for layer in self._ends() if layer is not None]
        alone = self.is_tied and len(ends) == 1 and ends[0].requires_grad
        return ends if alone else []

    def counted_elsewhere(self) -> list[Tensor]:
        """The last stage's copy of a tied matrix."""
        return self._tied() if self.runtime.rank else []

    def _ends(self) -> tuple[nn.Embedding | None, nn.Linear | None]:
        """The embedding and the output layer, where this rank has them."""
        first, last = None, None
        for stage in self.stages:
            assert isinstance(stage, Stage)
            first = stage.token_embedding if stage.is_first else first
            last = stage.head if stage.is_last else last
        return first, last

    def _add_tied_gradients(self, tied: list[Tensor]) -> None:
        """One process adds the gradients of both uses of a tied matrix; so do its two copies."""
        other = self.last_rank if self.runtime.rank == 0 else 0
        for copy in tied:
            assert copy.grad is not None  # backward has used it
            mine = copy.grad.contiguous()
            arrived = torch.empty_like(mine)
            exchange(sends=[(mine, other)], receives=[(arrived, other)], group=self.process_group)
            copy.grad += arrived


def check_schedule(schedule: Schedule, num_ranks: int, num_layers: int | None = None) -> None:
    """What can be refused before any rank starts: ValueError with both numbers."""
    if schedule.num_ranks != num_ranks:
        raise ValueError(
            f"the schedule {schedule.name!r} is for {schedule.num_ranks} ranks and there are "
            f"{num_ranks}: make one with num_ranks={num_ranks}"
        )
    if num_layers is not None:
        split_layers(num_layers, schedule.num_stages)
    validate(schedule)


def gather_spans(runtime: Runtime) -> Gantt:
    """The measured Gantt of the last step, the same in every rank; seconds from the first start.

    The ranks' clocks must be one: true on one machine.
    """
    rows: list[list] = [[] for _ in range(runtime.schedule.num_ranks)]
    dist.all_gather_object(rows, runtime.spans, group=runtime.process_group)
    zero = min(row[0][0] for row in rows)
    return Gantt([[(a - zero, b - zero, Action(*action)) for a, b, action in row] for row in rows])


def train(
    model: PipelineParallel,
    corpus: Corpus,
    *,
    steps: int,
    batch_size: int = 16,
    block: int = 128,
    lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[float]:
    """Train in every rank, on ``batch_size`` sequences a step, split into the micro-batches.

    Returns:
        The loss of each step: the same numbers in every rank, and those of one process.
    """
    device = next(model.parameters()).device
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=lr)
    is_last = model.runtime.rank == model.last_rank

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor | None:
        optimizer.zero_grad()
        loss = model.step(tokens_BT, targets_BT)
        optimizer.step()
        return loss if is_last else None

    # All ranks read the same tokens: one of them counts
    losses = run_steps(
        step,
        corpus,
        steps=steps,
        device=device,
        micro_batch=batch_size,
        block=block,
        counts=is_last,
    )
    of_last_rank = torch.tensor(losses, device=device)
    dist.broadcast(of_last_rank, group=model.process_group, group_src=model.last_rank)
    return of_last_rank.tolist()
