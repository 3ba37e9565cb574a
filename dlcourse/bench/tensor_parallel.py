"""Step time of the course's tensor parallelism over that of torch's DTensor.

Both train the lesson's GPT in the same ranks, one step of one and one step of the other in turn, so
that whatever else the machine does hits both alike. Only the ratio means something elsewhere.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dlcourse import Ranks
from dlcourse.bench._options import parser_of
from dlcourse.parallel.divisibility import check_tensor_parallel

TARGET = 1.0


def measure(steps: int, batch_size: int, block: int) -> tuple[list[float], list[float]]:
    """In every rank: seconds of each step, ours and DTensor's (16 all-reduces a step in both)."""
    import time

    import torch
    import torch.distributed as dist

    from dlcourse.corpus import Corpus
    from dlcourse.models.gpt import GPT
    from dlcourse.parallel import tensor
    from dlcourse.peers import tensor_parallel as peer

    ours = tensor.tensor_parallel(GPT(), vocabulary=False)
    theirs = peer.tensor_parallel(GPT())
    optimizers = {model: torch.optim.AdamW(model.parameters()) for model in (ours, theirs)}
    seconds: dict[torch.nn.Module, list[float]] = {ours: [], theirs: []}
    corpus = Corpus()
    num_warm_up = 3
    for step in range(steps + num_warm_up):
        tokens, targets = corpus.batch(step, micro_batch=batch_size, block=block)
        for model in (ours, theirs) if step % 2 else (theirs, ours):
            dist.barrier()
            start = time.perf_counter()
            optimizers[model].zero_grad()
            model(tokens, targets).backward()
            optimizers[model].step()
            if step >= num_warm_up:
                seconds[model].append(time.perf_counter() - start)
    return seconds[ours], seconds[theirs]


def megatron_beside_dtensor() -> dict[str, Any]:
    """In every rank: the lesson's row for megatron-core."""
    import torch

    from dlcourse.corpus import Corpus
    from dlcourse.models.gpt import GPT
    from dlcourse.peers import tensor_parallel as peer
    from dlcourse.peers.comparison import compare_steps, one_step

    batch = Corpus().batch(0, micro_batch=2)

    def stepping(cut: Callable[[GPT], torch.nn.Module]) -> Callable[[], torch.Tensor]:
        model = cut(GPT(seed=0))
        return one_step(model, torch.optim.AdamW(model.parameters()), *batch)

    reference = stepping(peer.tensor_parallel)
    return compare_steps(lambda: stepping(peer.megatron_parallel), reference, turns=40)


def record(path: Path, ranks: Ranks) -> None:
    """Write what megatron-core does in these ranks, for the lesson, which does not load it."""
    rows = ranks.run(megatron_beside_dtensor)
    versions = {name: version(name) for name in ("torch", "megatron-core")}
    told = {
        "library": "megatron-core",
        "version": versions["megatron-core"],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, Python "
        f"{platform.python_version()}, torch {versions['torch']}, {len(rows)} ranks",
        "what": "lesson 04's GPT, its blocks in megatron-core's layers, beside DTensor; "
        "in each rank",
        "ranks": rows,
    }
    path.write_text(json.dumps(told, indent=1) + "\n")


def slowest(per_rank: Sequence[Sequence[float]]) -> list[float]:
    """A step is over when the last rank has finished it."""
    return [max(step) for step in zip(*per_rank, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the ratio; 0 where it meets the target, 1 where it does not."""
    parser = parser_of("tensor_parallel", __doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument(
        "--batch-size", type=int, default=4, help="sequences, the same in all ranks"
    )
    parser.add_argument("--block", type=int, default=128, help="tokens in a sequence")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="write megatron-core's row for lesson 04"
    )
    args = parser.parse_args(argv)
    if args.steps < 2 or args.batch_size < 1:
        parser.error("give at least 2 steps and at least 1 sequence")
    check_tensor_parallel(n_head=4, n_embd=128, size=args.ranks)
    with Ranks(args.ranks) as ranks:
        if args.record is not None:
            record(args.record, ranks)
        per_rank = ranks.run(measure, args.steps, args.batch_size, args.block)
    ours, dtensor = (slowest(of_ranks) for of_ranks in zip(*per_rank, strict=True))
    low, ratio, high = statistics.quantiles(
        [mine / theirs for mine, theirs in zip(ours, dtensor, strict=True)], n=4
    )
    print(
        f"{args.ranks} ranks, {args.steps} steps of each in turn, median step: "
        f"ours {1e3 * statistics.median(ours):.1f} ms, "
        f"DTensor {1e3 * statistics.median(dtensor):.1f} ms"
    )
    print(
        f"tensor_parallel: {ratio:.3f} times DTensor's step time "
        f"(half of the pairs {low:.3f} to {high:.3f}), target at most {TARGET}"
    )
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
