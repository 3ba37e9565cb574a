"""ZeRO-3 of the course over torch's FSDP2: step time and peak memory; bytes sent by each stage.

Both train the lesson's GPT in the same ranks, one step of one and one step of the other in turn, so
that whatever else the machine does hits both alike. Only the ratio means something elsewhere.
Peak memory is the recorder's, over live tensors, of two steps of each alone. Bytes are those of
each process's own TCP connections, in sizes of the model.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from dlcourse import Ranks
from dlcourse.bench._options import parser_of
from dlcourse.bench.data_parallel import slowest
from dlcourse.formulas.traffic import zero_bytes

TIME_TARGET, PEAK_TARGET, BYTES_TOLERANCE = 0.9, 1.0, 0.01
NAMES = ("ZeRO1", "ZeRO2", "ZeRO3", "FSDP2")


def make(name: str) -> tuple[Callable[[Any], None], int]:
    """In a rank: a function that takes a step on (tokens, targets), and the model's bytes."""
    import torch

    from dlcourse.models.gpt import GPT
    from dlcourse.parallel.zero import ZeRO1
    from dlcourse.parallel.zero2 import ZeRO2
    from dlcourse.parallel.zero3 import ZeRO3
    from dlcourse.peers.zero import shard_with_fsdp2

    gpt = GPT()
    model: Any
    nbytes = 4 * gpt.num_parameters()
    if name == "FSDP2":
        model, optimizer = shard_with_fsdp2(gpt)
    else:
        model = {"ZeRO1": ZeRO1, "ZeRO2": ZeRO2, "ZeRO3": ZeRO3}[name](gpt)
        optimizer = torch.optim.AdamW(model.shards)

    def step(batch: Any) -> None:
        model(*batch).backward()
        if name != "FSDP2":
            model.sync_gradients()
        optimizer.step()
        optimizer.zero_grad()
        if name != "FSDP2":
            model.sync_parameters()

    return step, nbytes


def batches(count: int, batch_size: int, block: int) -> list:
    """In a rank: its part of the batches of ``count`` steps."""
    import torch.distributed as dist

    from dlcourse.corpus import Corpus

    rank, world_size = dist.get_rank(), dist.get_world_size()
    share = {"micro_batch": batch_size // world_size, "block": block}
    corpus = Corpus()
    return [corpus.batch(s, rank=rank, world_size=world_size, **share) for s in range(count)]


def race(steps: int, batch_size: int, block: int) -> tuple[list[float], list[float]]:
    """In every rank: seconds of each step, ours and FSDP2's."""
    import time

    import torch.distributed as dist

    racers = {name: make(name)[0] for name in ("ZeRO3", "FSDP2")}
    seconds: dict[str, list[float]] = {name: [] for name in racers}
    num_warm_up = 3
    for number, batch in enumerate(batches(steps + num_warm_up, batch_size, block)):
        for name in racers if number % 2 else reversed(racers):
            dist.barrier()
            start = time.perf_counter()
            racers[name](batch)
            if number >= num_warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds["ZeRO3"], seconds["FSDP2"]


def train_a_little(name: str, batch_size: int, block: int) -> float | None:
    """In every rank: two steps to be recorded; then one more for bytes sent, in model sizes."""
    import gc

    import torch.distributed as dist

    from dlcourse.collectives.tcp_counters import wire_counters

    gc.collect()
    step, nbytes = make(name)
    *first, last = batches(3, batch_size, block)
    for batch in first:
        step(batch)
    dist.barrier()
    before = wire_counters()
    step(last)
    after = wire_counters()
    return None if before is None or after is None else (after[0] - before[0]) / nbytes


def main(argv: Sequence[str] | None = None) -> int:
    """Print the ratios; 0 where all meet their targets, 1 where not."""
    parser = parser_of("zero", __doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8, help="sequences over all ranks")
    parser.add_argument("--block", type=int, default=128, help="tokens in a sequence")
    args = parser.parse_args(argv)
    if args.steps < 2 or args.batch_size < args.ranks or args.ranks < 2:
        parser.error("give at least 2 ranks, 2 steps, and one sequence for each rank")
    job = (args.batch_size, args.block)
    peaks: dict[str, int] = {}
    sent: dict[str, float | None] = {}
    with Ranks(args.ranks) as ranks:
        per_rank = ranks.run(race, args.steps, *job)
        for name in NAMES:
            ranks.restart()
            per_name = ranks.run(train_a_little, name, *job, record=True)
            sent[name] = None if None in per_name else statistics.mean(per_name)
            peaks[name] = ranks.last.memory.peak_bytes
    ours, theirs = (slowest(of_ranks) for of_ranks in zip(*per_rank, strict=True))
    low, ratio, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    print(
        f"{args.ranks} ranks, {args.steps} steps of each in turn, median step: "
        f"ZeRO3 {1e3 * statistics.median(ours):.1f} ms, "
        f"FSDP2 {1e3 * statistics.median(theirs):.1f} ms"
    )
    print(
        f"zero: {ratio:.3f} times FSDP2's step time "
        f"(half of the pairs {low:.3f} to {high:.3f}), target at most {TIME_TARGET}"
    )
    peak = peaks["ZeRO3"] / peaks["FSDP2"]
    print(
        f"zero: {peak:.3f} times FSDP2's peak memory ({peaks['ZeRO3'] / 2**20:.2f} and "
        f"{peaks['FSDP2'] / 2**20:.2f} MiB), target at most {PEAK_TARGET}"
    )
    missed = ratio > TIME_TARGET or peak > PEAK_TARGET
    for name, stage in (("ZeRO1", 1), ("ZeRO2", 2), ("ZeRO3", 3), ("FSDP2", None)):
        times = None if stage is None else zero_bytes(1, world_size=args.ranks, stage=stage)
        amount = sent[name]
        if amount is None:
            print(f"zero: {name}: this system counts no bytes of a process")
            continue
        want = "" if times is None else f", target {times:g}"
        print(f"zero: {name} sends {amount:.4f} model sizes in a step{want}")
        if times is not None:
            missed |= abs(amount / times - 1) > BYTES_TOLERANCE
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
