"""Step time of the course's overlapped data parallelism over that of torch's DDP.

Both train the lesson's GPT in the same ranks, one step of one and one step of the other in turn, so
that whatever else the machine does hits both alike. Only the ratio means something elsewhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from dlcourse import Ranks
from dlcourse.bench._options import parser_of

TARGET = 1.05


def measure(steps: int, batch_size: int, block: int) -> tuple[list[float], list[float]]:
    """In every rank: seconds of each step, ours and DDP's."""
    import time

    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from dlcourse.corpus import Corpus
    from dlcourse.models.gpt import GPT
    from dlcourse.parallel.data import OverlappedDataParallel

    rank, world_size = dist.get_rank(), dist.get_world_size()
    ours, ddp = OverlappedDataParallel(GPT()), DistributedDataParallel(GPT())
    optimizers = {model: torch.optim.AdamW(model.parameters()) for model in (ours, ddp)}
    seconds: dict[torch.nn.Module, list[float]] = {ours: [], ddp: []}
    corpus = Corpus()
    num_warm_up = 3  # DDP arranges its buckets anew after its first step
    for step in range(steps + num_warm_up):
        tokens, targets = corpus.batch(
            step,
            rank=rank,
            world_size=world_size,
            micro_batch=batch_size // world_size,
            block=block,
        )
        for model in (ours, ddp) if step % 2 else (ddp, ours):
            dist.barrier()
            start = time.perf_counter()
            optimizers[model].zero_grad()
            model(tokens, targets).backward()
            if model is ours:
                model.sync_gradients()
            optimizers[model].step()
            if step >= num_warm_up:
                seconds[model].append(time.perf_counter() - start)
    return seconds[ours], seconds[ddp]


def slowest(per_rank: Sequence[Sequence[float]]) -> list[float]:
    """A step is over when the last rank has finished it."""
    return [max(step) for step in zip(*per_rank, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the ratio; 0 where it meets the target, 1 where it does not."""
    parser = parser_of("data_parallel", __doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8, help="sequences over all ranks")
    parser.add_argument("--block", type=int, default=128, help="tokens in a sequence")
    args = parser.parse_args(argv)
    if args.steps < 2 or args.batch_size < args.ranks:
        parser.error("give at least 2 steps, and at least one sequence for each rank")
    with Ranks(args.ranks) as ranks:
        per_rank = ranks.run(measure, args.steps, args.batch_size, args.block)
    ours, ddp = (slowest(of_ranks) for of_ranks in zip(*per_rank, strict=True))
    low, ratio, high = statistics.quantiles(
        [mine / theirs for mine, theirs in zip(ours, ddp, strict=True)], n=4
    )
    print(
        f"{args.ranks} ranks, {args.steps} steps of each in turn, median step: "
        f"ours {1e3 * statistics.median(ours):.1f} ms, DDP {1e3 * statistics.median(ddp):.1f} ms"
    )
    print(
        f"data_parallel: {ratio:.3f} times DDP's step time "
        f"(half of the pairs {low:.3f} to {high:.3f}), target at most {TARGET}"
    )
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
