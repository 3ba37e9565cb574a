"""Data parallelism: a whole copy of the model in every rank, a different part of the batch each.

Three classes, one idea each. All of them start from rank 0's parameters and make every rank's
gradient the mean over the ranks, so that equal optimizers keep the copies equal for ever. Buffers
are rank 0's after every step (DDP sends them before the next forward instead):

    model = OverlappedDataParallel(GPT())
    model(tokens, targets).backward()
    model.sync_gradients()                  # from here on, .grad is the mean over all ranks
    optimizer.step()
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.collectives.connection import Connection
from dlcourse.corpus import Corpus, sequences_per_rank
from dlcourse.parallel.data_buckets import Bucket, check_in_buckets, make_buckets
from dlcourse.parallel.hooks import weakly
from dlcourse.parallel.loop import mean_over_ranks, run_steps
from dlcourse.parallel.replicas import (
    AVERAGED,
    broadcast_buffers,
    broadcast_module,
    refuse_own_gradients,
)


class NaiveDataParallel(nn.Module):
    """After backward, one all-reduce for each parameter's gradient.

    Args:
        module: the model; after this call it equals rank 0's in every rank. What is put into it
            later does not: wrap it again.
        process_group: the ranks that share the batch; all of them by default.
    """

    def __init__(
        self, module: nn.Module, *, process_group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        refuse_own_gradients(module, "here they may have been sent by then")
        AVERAGED.update(module.modules())
        self.module = module
        self.process_group = process_group
        self.world_size = dist.get_world_size(process_group)
        broadcast_module(module, process_group=process_group)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def no_sync(self) -> AbstractContextManager[None]:
        """Accumulate without communication. Here, nothing is sent before ``sync_gradients``."""
        return nullcontext()

    @torch.no_grad()
    def sync_gradients(self) -> None:
        """Make every gradient the mean over the ranks. Call it after backward, before the step."""
        for parameter in self.module.parameters():
            if parameter.grad is None and not parameter.requires_grad:
                continue  # frozen
            if parameter.grad is None:  # unused here, but another rank may be waiting for it
                parameter.grad = torch.zeros_like(parameter)
            gradient = parameter.grad.to_dense().contiguous()
            gradient *= 1 / self.world_size  # before the sum, which float16 might not hold
            dist.all_reduce(gradient, group=self.process_group)
            parameter.grad = gradient
        broadcast_buffers(self.module, process_group=self.process_group)


class BucketedDataParallel(NaiveDataParallel):
    """After backward, one all-reduce for each bucket: few large messages instead of many small.

    A gradient becomes a view into its bucket, so the sum arrives in place. Parameters that are
    added or unfrozen later are in no bucket, and refused: wrap the module again.

    Args:
        module, process_group: as above.
        bucket_cap_mb, first_bucket_mb: see ``make_buckets``; these are what DDP uses.
        find_unused_parameters: keep ``grad = None`` where no rank used a parameter, as one process
            does. Without it such a gradient becomes zero. Costs one number for each parameter.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        process_group: dist.ProcessGroup | None = None,
        bucket_cap_mb: float = 25.0,
        first_bucket_mb: float = 1.0,
        find_unused_parameters: bool = False,
    ) -> None:
        super().__init__(module, process_group=process_group)
        self.find_unused_parameters = find_unused_parameters
        self.buckets = make_buckets(
            module.parameters(),
            bucket_cap_mb=bucket_cap_mb,
            first_bucket_mb=first_bucket_mb,
            count_users=find_unused_parameters,
        )
        self.forget_step()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            check_in_buckets(self.module, self.buckets)
        return super().forward(*args, **kwargs)

    def forget_step(self) -> None:
        """What has been sent, or has not, is none of the next step's."""
        for bucket in self.buckets:
            bucket.work, bucket.missing = None, set(bucket.parameters)
        self.connection = Connection()

    @torch.no_grad()
    def launch(self, bucket: Bucket) -> dist.Work:
        """Copy the gradients in, already divided, and start the all-reduce without waiting."""
        for i, (parameter, view) in enumerate(zip(bucket.parameters, bucket.views, strict=True)):
            if self.find_unused_parameters:
                bucket.users[i] = parameter.grad is not None
            if parameter.grad is None:
                view.zero_()
            else:
                torch.mul(parameter.grad.to_dense(), 1 / self.world_size, out=view)
            if parameter.grad is not None or parameter.requires_grad:  # not frozen since then
                parameter.grad = view
        work = dist.all_reduce(bucket.buffer, group=self.process_group, async_op=True)
        bucket.version = bucket.buffer._version
        return work

    def sync_gradients(self) -> None:
        """Send what has not been sent yet, then wait for all of it."""
        works = [bucket.work or self.launch(bucket) for bucket in self.buckets]
        self.forget_step()  # before waiting: a wait that fails ends it as well
        for bucket, work in zip(self.buckets, works, strict=True):
            work.wait()
            if self.find_unused_parameters:
                num_users = bucket.users.tolist()
                for parameter, count in zip(bucket.parameters, num_users, strict=True):
                    if count == 0:
                        parameter.grad = None
        broadcast_buffers(self.module, process_group=self.process_group)


# Which wrapper of a module ran forward last: where there are several, that one sends
last_forward: weakref.WeakKeyDictionary[nn.Module, weakref.ref] = weakref.WeakKeyDictionary()


class OverlappedDataParallel(BucketedDataParallel):
    """A bucket leaves as soon as backward has filled it, while backward goes on computing.

    As in DDP, the forward pass decides whether the backward pass that follows sends anything.
    """

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        self.syncing = True  # not inside no_sync
        self.sends_in_backward = False
        self.bucket_of = {p: bucket for bucket in self.buckets for p in bucket.parameters}
        for parameter in self.bucket_of:
            parameter.register_post_accumulate_grad_hook(weakly(self.gradient_is_ready))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            if self.connection.was_cut():
                self.forget_step()
            self.sends_in_backward = self.syncing
            last_forward[self.module] = weakref.ref(self)
        return super().forward(*args, **kwargs)

    def gradient_is_ready(self, parameter: nn.Parameter) -> None:
        """Backward calls this for each parameter, last layers first."""
        if not self.sends_in_backward or last_forward[self.module]() is not self:
            return
        bucket = self.bucket_of[parameter]
        if parameter not in bucket.missing:
            raise RuntimeError(
                "backward ran twice without sync_gradients() in between: put forward and backward "
                "of all but a step's last micro-batch into no_sync(). If the last backward failed, "
                "call sync_gradients() and then zero_grad() in all ranks, and repeat the step"
            )
        bucket.missing.remove(parameter)
        # In the buckets' order, whatever order they fill in: the ranks' messages must match
        for next_bucket in self.buckets:
            if next_bucket.work is None:
                if next_bucket.missing:
                    break
                next_bucket.work = self.launch(next_bucket)

    def sync_gradients(self) -> None:
        changed = any(bucket.work and bucket.gradients_changed() for bucket in self.buckets)
        super().sync_gradients()
        self.sends_in_backward = False  # also where another wrapper trains the same module next
        if changed:
            raise RuntimeError(
                "gradients were changed while they were being sent, between backward and "
                "sync_gradients(): clip or scale them after it. zero_grad() and repeat the step"
            )

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate without communication: run forward and backward inside."""
        before, self.syncing = self.syncing, False
        try:
            yield
        finally:
            self.syncing = before


def train(
    model: NaiveDataParallel,
    corpus: Corpus,
    *,
    steps: int,
    batch_size: int = 16,
    block: int = 128,
    accumulate: int = 1,
    lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[float]:
    """Train in every rank, on ``batch_size`` sequences a step over all ranks together.

    Args:
        model: a ``GPT`` in one of the classes above.
        accumulate: split a rank's part of the batch into this many micro-batches.
        optimizer: AdamW with learning rate ``lr`` by default.

    Returns:
        The loss of each step over the whole batch: the same numbers in every rank.

    Raises:
        ValueError: ranks and micro-batches do not divide ``batch_size``.
    """
    rank, world_size = dist.get_rank(model.process_group), model.world_size
    micro_batch = sequences_per_rank(batch_size, world_size=world_size, accumulate=accumulate)
    device = next(model.parameters()).device
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64, device=device)
        parts = zip(tokens_BT.chunk(accumulate), targets_BT.chunk(accumulate), strict=True)
        for i, (x_BT, y_BT) in enumerate(parts, start=1):
            with nullcontext() if i == accumulate else model.no_sync():
                loss = model(x_BT, y_BT) / accumulate
                loss.backward()
            total += loss.detach()
        model.sync_gradients()
        optimizer.step()
        return total

    losses = run_steps(
        step,
        corpus,
        steps=steps,
        device=device,
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
        block=block,
    )
    return mean_over_ranks(losses, device=device, process_group=model.process_group)
