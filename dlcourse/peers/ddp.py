"""The job of ``dlcourse.parallel.data`` in torch's own DistributedDataParallel."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from dlcourse.corpus import Corpus, sequences_per_rank
from dlcourse.parallel.loop import mean_over_ranks, run_steps
from dlcourse.peers.comparison import timed


def train(
    model: nn.Module,
    corpus: Corpus,
    *,
    steps: int,
    batch_size: int = 16,
    block: int = 128,
    accumulate: int = 1,
    lr: float = 1e-3,
    **ddp_options: Any,
) -> dict[str, list]:
    """Wrap ``model`` in DDP and train it. Arguments as in ``dlcourse.parallel.data.train``.

    Args:
        ddp_options: for ``DistributedDataParallel``, for example ``bucket_cap_mb=1``.

    Returns:
        Plain lists with one entry per step. ``losses``: over the whole batch. ``step_seconds``:
        wall time in this rank. ``bytes``: the buffers that this rank gave to all-reduce.
    """
    ddp = DistributedDataParallel(model, **ddp_options)
    messages: list[int] = []

    # Without annotations: DDP checks them, and takes a postponed one for a wrong one
    def counting_hook(group, bucket):  # type: ignore[no-untyped-def]
        messages.append(bucket.buffer().nbytes)
        return allreduce_hook(group, bucket)  # what DDP does without a hook

    ddp.register_comm_hook(ddp_options.get("process_group"), counting_hook)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=lr)
    rank, world_size = dist.get_rank(ddp.process_group), dist.get_world_size(ddp.process_group)
    micro_batch = sequences_per_rank(batch_size, world_size=world_size, accumulate=accumulate)
    device = next(model.parameters()).device
    seconds: list[float] = []
    num_bytes: list[int] = []

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        messages.clear()
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64, device=device)
        parts = zip(tokens_BT.chunk(accumulate), targets_BT.chunk(accumulate), strict=True)
        for i, (x_BT, y_BT) in enumerate(parts, start=1):
            with nullcontext() if i == accumulate else ddp.no_sync():
                loss = ddp(x_BT, y_BT) / accumulate
                loss.backward()
            total += loss.detach()
        optimizer.step()
        num_bytes.append(sum(messages))
        return total

    losses = run_steps(
        timed(step, seconds),
        corpus,
        steps=steps,
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
        block=block,
        device=device,
    )
    losses = mean_over_ranks(losses, device=device, process_group=ddp.process_group)
    return {"losses": losses, "step_seconds": seconds, "bytes": num_bytes}
