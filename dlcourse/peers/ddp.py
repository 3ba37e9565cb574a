"""The job of ``dlcourse.parallel.data`` in torch's own DistributedDataParallel."""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from dlcourse.corpus import Corpus, sequences_per_rank
from dlcourse.measure import mark_step


def train(
    model: nn.Module,
    corpus: Corpus,
    *,
    steps: int,
    batch_size: int = 16,
    block: int = 128,
    accumulate: int = 1,
    lr: float = 1e-3,
    **ddp_options,
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
    def counting_hook(group, bucket):
        messages.append(bucket.buffer().nbytes)
        return allreduce_hook(group, bucket)  # what DDP does without a hook

    ddp.register_comm_hook(ddp_options.get("process_group"), counting_hook)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=lr)
    rank, world_size = dist.get_rank(ddp.process_group), dist.get_world_size(ddp.process_group)
    micro_batch = sequences_per_rank(batch_size, world_size=world_size, accumulate=accumulate)
    device = next(model.parameters()).device
    result: dict[str, list] = {"losses": [], "step_seconds": [], "bytes": []}
    for step in range(steps):
        tokens_BT, targets_BT = corpus.batch(
            step, rank=rank, world_size=world_size, micro_batch=micro_batch, block=block
        )
        messages.clear()
        start = time.perf_counter()
        optimizer.zero_grad()
        mean_loss = 0.0
        xs = tokens_BT.to(device).chunk(accumulate)
        ys = targets_BT.to(device).chunk(accumulate)
        for i, (x_BT, y_BT) in enumerate(zip(xs, ys, strict=True), start=1):
            with nullcontext() if i == accumulate else ddp.no_sync():
                loss = ddp(x_BT, y_BT) / accumulate
                loss.backward()
            mean_loss += loss.item()
        optimizer.step()
        mark_step(tokens=tokens_BT.numel(), loss=mean_loss)
        result["step_seconds"].append(time.perf_counter() - start)
        result["losses"].append(mean_loss)
        result["bytes"].append(sum(messages))
    losses = torch.tensor(result["losses"], dtype=torch.float64, device=device)
    of_all_ranks = [torch.empty_like(losses) for _ in range(world_size)]
    dist.all_gather(of_all_ranks, losses, group=ddp.process_group)
    result["losses"] = torch.stack(of_all_ranks).mean(dim=0).tolist()
    return result
