"""Step time of the course's pipeline over that of torch's, and measured bubbles over predicted.

Step times: the same GPT, stages and micro-batches in the same ranks, one step of one and one step
of the other in turn, so that whatever else the machine does hits both alike.

Bubbles: four ranks on two cores cannot compute at once, so stage times are imposed (each action
sleeps). The simulation is given the stage times of the run and the time of a message in other runs;
the idle time that it predicts is compared with the idle time that the ranks had. What it predicts
for messages that take no time is printed too.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from dlcourse import Ranks
from dlcourse.bench._options import parser_of

TARGETS = {"1f1b": 1.05, "zb_h1": 1.0, "zb_v": 1.0}
BUBBLE = 0.10
BUBBLES = ("gpipe", "1f1b", "interleaved", "zb_h1", "zb_v", "dual_pipe_v")


def measure(name: str, steps: int, micro_batches: int, layers: int) -> list[list[list[float]]]:
    """In every rank: wall seconds of each step and CPU seconds, for ours and for torch's."""
    import time

    import torch
    import torch.distributed as dist

    from dlcourse.corpus import Corpus
    from dlcourse.models.gpt import GPT, GPTConfig
    from dlcourse.parallel.pipeline import PipelineParallel
    from dlcourse.parallel.pipeline_schedules import make_schedule
    from dlcourse.peers.pipeline_parallel import TorchPipeline

    config = GPTConfig(n_layer=layers)
    schedule = make_schedule(name, dist.get_world_size(), micro_batches)
    ours = PipelineParallel(GPT(config), schedule)
    theirs = TorchPipeline(GPT(config), name, micro_batches)
    optimizers = {
        ours: torch.optim.AdamW(ours.parameters()),
        theirs: torch.optim.AdamW(theirs.modules.parameters()),
    }
    seconds: dict[object, list[list[float]]] = {ours: [[], []], theirs: [[], []]}
    corpus = Corpus()
    num_warm_up = 2
    for step in range(steps + num_warm_up):
        batch = corpus.batch(step, micro_batch=micro_batches, block=128)
        for pipeline in (ours, theirs) if step % 2 else (theirs, ours):
            dist.barrier()
            start = time.perf_counter(), time.process_time()
            optimizers[pipeline].zero_grad()
            pipeline.step(*batch)
            optimizers[pipeline].step()
            if step >= num_warm_up:
                seconds[pipeline][0].append(time.perf_counter() - start[0])
                seconds[pipeline][1].append(time.process_time() - start[1])
    return [seconds[ours], seconds[theirs]]


def bubble(name: str, seconds: float, micro_batches: int, repeats: int) -> list[float]:
    """In every rank: idle over total, predicted without and with messages' time, and measured."""
    from dlcourse.parallel.pipeline_emulation import run_emulated

    found = run_emulated(name, seconds, micro_batches, repeats)
    return [gantt.idle_over_total for gantt in (found.free, found.predicted, found.gantt)]


def slowest(per_rank: Sequence[Sequence[float]]) -> list[float]:
    """A step is over when the last rank has finished it."""
    return [max(step) for step in zip(*per_rank, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print ratios; 0 where all meet their targets, 1 where one does not."""
    parser = parser_of("pipeline", __doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--stage-ms", type=float, default=30.0, help="imposed time of F, B and W")
    args = parser.parse_args(argv)
    if args.steps < 2 or args.micro_batches < 2 * args.ranks:
        parser.error("give at least 2 steps, and twice as many micro-batches as ranks")
    missed = 0
    with Ranks(args.ranks, timeout=120) as ranks:
        for name, target in TARGETS.items():
            layers = 2 * args.ranks
            found = ranks.run(measure, name, args.steps, args.micro_batches, layers)
            walls = [slowest([row[who][0] for row in found]) for who in (0, 1)]
            low, ratio, high = statistics.quantiles(
                [mine / other for mine, other in zip(*walls, strict=True)], n=4
            )
            cpu = [sum(statistics.median(row[who][1]) for row in found) for who in (0, 1)]
            print(
                f"pipeline {name}: {ratio:.3f} times torch's step time (half of the pairs "
                f"{low:.3f} to {high:.3f}), target at most {target}; medians "
                f"{1e3 * statistics.median(walls[0]):.0f} and "
                f"{1e3 * statistics.median(walls[1]):.0f} ms; "
                f"{cpu[0] / cpu[1]:.3f} times its CPU time"
            )
            missed += ratio > target
        for name in BUBBLES:
            job = (name, args.stage_ms / 1e3, args.micro_batches, 3)
            free, predicted, measured = ranks.run(bubble, *job)[0]
            off = measured / predicted - 1
            print(
                f"bubble {name}: {measured:.1%} of the time idle, predicted {predicted:.1%} "
                f"({off:+.1%}), target within {BUBBLE:.0%}; with messages that take no time "
                f"{free:.1%} ({measured / free - 1:+.1%})"
            )
            missed += abs(off) > BUBBLE
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
