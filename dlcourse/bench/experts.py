"""Tokens to their experts and back: through shared memory, over Gloo and by MPI, in turns.

    dlcourse bench experts
    dlcourse bench experts --soak 1000000      # none lost, none torn

Every rank sends each other one its tokens (dispatch) and gets them back (combine), with uneven
counts that all know beforehand: a help to all but the low-latency calls, which do not need them.
Then a step of a whole MoE layer, forward and backward, whose rows go either way, beside DeepSpeed's
layer and one of torch's DTensor. Its experts are small, as in DeepSeek's models: what is compared
is how rows travel, and large experts only add the same to all.

Ratios are medians over the turns of one over the other in the same turn. MPI's ranks are other
processes: they sleep while ours work, and the reverse.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from dlcourse import Ranks
from dlcourse.bench._options import parser_of
from dlcourse.bench._soak import soak
from dlcourse.peers import mpi, mpi_collectives
from dlcourse.words.text_table import text_table

WIDTH = 256  # float32 elements of a token
TOKENS = {"128 tokens": 128, "4 MB": 4096}  # of a rank
INNER = {128: 20, 4096: 4}  # calls for each reading of the clock
# (tokens, ours: the best of these counts, theirs, at most)
TARGETS: list[tuple[str, tuple[str, ...], str, float]] = [
    ("128 tokens", ("one-sided", "low latency"), "Gloo", 0.30),
    ("128 tokens", ("one-sided", "low latency"), "MPI", 1.5),
    ("4 MB", ("one-sided", "low latency"), "Gloo", 0.5),
    ("MoE layer", ("ours, one-sided",), "ours", 0.8),
    ("MoE layer", ("ours, one-sided",), "DeepSpeed", 1.0),
    ("MoE layer", ("ours, one-sided",), "torch", 1.0),
]
EXPERTS, TOP_K, HIDDEN = 8, 2, WIDTH // 2  # of the layer, which gets the first number of tokens


def counts_of(tokens: int, p: int) -> list[list[int]]:
    """Rows from each rank to each: uneven, as a router makes them; every rank sends ``tokens``."""
    import numpy as np

    return np.random.default_rng(0).multinomial(tokens, np.ones(p) / p, size=p).tolist()


def turn(order: int, layer: bool) -> dict[tuple[str, str], float]:
    """In every rank: seconds of a dispatch and a combine, of each kind at each size; of a step."""
    import torch.distributed as dist

    seconds = {}
    for label, tokens in TOKENS.items():
        calls = [*_calls(tokens).items()]
        for name, call in calls[order % len(calls) :] + calls[: order % len(calls)]:
            seconds[label, name] = _time(call, INNER[tokens], dist.barrier)
    layers = [*_layers().items()] if layer else []
    for name, step in layers if order % 2 else layers[::-1]:
        seconds["MoE layer", name] = _time(step, 1, dist.barrier)
    return seconds


def _time(call: Callable[[], None], inner: int, barrier: Callable[[], Any]) -> float:
    call()
    barrier()
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - start) / inner


_made: dict[int, dict[str, Callable[[], None]]] = {}
_steps: dict[str, Callable[[], Any]] = {}


def _calls(tokens: int) -> dict[str, Callable[[], None]]:
    if tokens in _made:
        return _made[tokens]
    import torch
    import torch.distributed as dist

    from dlcourse.collectives.low_latency import LowLatency
    from dlcourse.collectives.one_sided import all_to_all
    from dlcourse.collectives.places import ready_ways

    rank, counts = dist.get_rank(), counts_of(tokens, dist.get_world_size())
    sent, came = counts[rank], [row[rank] for row in counts]
    x = torch.randn(tokens, WIDTH)
    there, back = torch.empty(sum(came), WIDTH), torch.empty_like(x)
    capacity = max(map(max, counts))
    low, words = LowLatency(capacity, WIDTH), LowLatency(capacity, WIDTH, ready=ready_ways()[-1])

    def by(exchange: Callable[..., Any]) -> Callable[[], None]:
        def call() -> None:
            exchange(there, x, came, sent)
            exchange(back, there, sent, came)

        return call

    def through(buffer: LowLatency) -> Callable[[], None]:
        def call() -> None:
            inbox, _ = buffer.dispatch(x, sent)
            back[:] = buffer.combine(inbox)

        return call

    calls = {
        "Gloo": by(dist.all_to_all_single),
        "one-sided": by(all_to_all),
        "low latency": through(low),
        "low latency, by payload": through(words),
    }
    for name, call in calls.items():
        back.zero_()
        call()
        assert torch.equal(back, x), name
    _made[tokens] = calls
    return calls


def _layers() -> dict[str, Callable[[], Any]]:
    """A step of each layer on this rank's tokens; all gave the same output."""
    if _steps:
        return _steps
    import torch
    import torch.distributed as dist

    from dlcourse.collectives.low_latency_exchange import LowLatencyExchange
    from dlcourse.collectives.one_sided import all_to_all
    from dlcourse.models.moe import MoE
    from dlcourse.peers.expert_parallel import layers, step

    def make() -> MoE:
        torch.manual_seed(0)
        return MoE(WIDTH, num_experts=EXPERTS, top_k=TOP_K, hidden=HIDDEN)

    tokens = min(TOKENS.values())
    low = LowLatencyExchange(tokens * TOP_K)  # room for all of a rank's
    found = layers(make, {"one-sided": all_to_all, "low latency": low})
    torch.manual_seed(dist.get_rank())
    x = torch.randn(tokens, WIDTH)
    outputs = [step(layer, x) for layer in found.values()]
    for y in outputs:  # they add up an expert's products in other orders
        torch.testing.assert_close(y, outputs[0], rtol=1e-4, atol=1e-5)
    _steps.update({name: partial(step, layer, x) for name, layer in found.items()})
    return _steps


def mpi_turns(comm: Any, folder: str) -> dict[str, list[float]]:
    """In every rank of MPI: the same, whenever a file says that it is their turn."""
    calls = {
        label: mpi_collectives.there_and_back(comm, counts_of(tokens, comm.size), WIDTH)
        for label, tokens in TOKENS.items()
    }
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    for number in range(10**6):
        while not (Path(folder) / f"{number}.turn").exists():
            if (Path(folder) / "over").exists():
                return seconds
            time.sleep(0.005)  # not in MPI, which would keep a core busy
        for label, call in calls.items():
            seconds[label].append(_time(call, INNER[TOKENS[label]], comm.Barrier))
        (Path(folder) / f"{number}.{comm.rank}").touch()
    return seconds


class MPITurns:
    """The ranks of MPI, which work only while `turn` runs."""

    def __init__(self, num_ranks: int, folder: str, time_limit: float) -> None:
        self.num_ranks, self.folder, self.number = num_ranks, Path(folder), 0
        self.result: list[dict[str, list[float]]] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(time_limit,), daemon=True)
        self._thread.start()

    def _run(self, time_limit: float) -> None:
        try:
            self.result = mpi.run_mpi(
                mpi_turns, str(self.folder), num_ranks=self.num_ranks, time_limit=time_limit
            )
        except BaseException as error:
            self.error = error

    def turn(self) -> None:
        """Let them do one, and wait for it."""
        (self.folder / f"{self.number}.turn").touch()
        done = [self.folder / f"{self.number}.{rank}" for rank in range(self.num_ranks)]
        while not all(path.exists() for path in done) and self._thread.is_alive():
            time.sleep(0.005)
        self.number += 1

    def end(self) -> list[dict[str, list[float]]]:
        """Seconds of all turns, of each rank."""
        (self.folder / "over").touch()
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self.result


def measure(
    ranks: Ranks, num_ranks: int, turns: int, *, layer: bool = True
) -> dict[tuple[str, str], list[float]]:
    """Seconds of each turn, those of the slowest rank: {(tokens, kind): [...]}.

    Args:
        layer: also a step of whole layers, with imports of DeepSpeed.
    """
    samples: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="dlcourse-bench-") as folder:
        # More ranks than cores: MPICH keeps a core while it waits, unless it is told to yield
        os.environ.setdefault("MPIR_CVAR_POLLS_BEFORE_YIELD", "1")
        others = (
            None
            if mpi.missing(num_ranks)
            else MPITurns(num_ranks, folder, time_limit=60 + 10 * turns)
        )
        try:
            for number in range(turns):
                per_rank = ranks.run(turn, number, layer)
                for key in per_rank[0]:
                    samples.setdefault(key, []).append(max(seconds[key] for seconds in per_rank))
                if others is not None:
                    others.turn()
        finally:
            theirs = [] if others is None else others.end()
    for label in TOKENS if theirs else ():
        samples[label, "MPI"] = [max(x) for x in zip(*(s[label] for s in theirs), strict=True)]
    return samples


def main(argv: Sequence[str] | None = None) -> int:
    """Print times and ratios; 0 where every target is met, 1 where not."""
    parser = parser_of("experts", __doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--turns", type=int, default=20, help="turns of each kind")
    parser.add_argument("--soak", type=int, metavar="N", help="only so many random dispatches")
    parser.add_argument("--seed", type=int, default=0, help="of the dispatches and of the stops")
    args = parser.parse_args(argv)
    if args.turns < 2 or args.ranks < 2:
        parser.error("give at least 2 ranks and 2 turns")
    if args.soak is not None and args.soak < 1:
        parser.error(f"--soak {args.soak}: give a number of dispatches, at least 1")
    with Ranks(args.ranks, device="cpu", default=False) as ranks:
        if args.soak is not None:
            return 1 if soak(ranks, args.soak, seed=args.seed) else 0
        samples = measure(ranks, args.ranks, args.turns)
    load = os.getloadavg()[0]
    print(f"{args.ranks} ranks, {args.turns} turns; load of the machine {load:.1f}")
    if lacking := mpi.missing(args.ranks):
        print(f"without MPI: {lacking}")
    return 1 if judge(samples) else 0


def judge(samples: dict[tuple[str, str], list[float]]) -> int:
    """Print times and ratios; returns how many targets are missed."""
    rows = [
        [*key, f"{1e6 * median(times):.0f}", f"{1e6 * min(times):.0f}"]
        for key, times in samples.items()
    ]
    print(text_table(("", "dispatch + combine, or a step", "microseconds", "least"), rows))
    missed = 0
    for label, ours, theirs, limit in TARGETS:
        if (label, theirs) not in samples:
            continue
        best = min(_ratio(samples, label, name, theirs) for name in ours)
        missed += best > limit
        print(f"{label}: {best:.3f} of {theirs}, target at most {limit}")
    return missed


def _ratio(
    samples: dict[tuple[str, str], list[float]], label: str, ours: str, theirs: str
) -> float:
    pairs = zip(samples[label, ours], samples[label, theirs], strict=True)
    low, middle, high = quantiles([a / b for a, b in pairs], n=4)
    print(
        f"{label}, {ours}: {middle:.3f} times {theirs} (half of the turns {low:.3f} to {high:.3f})"
    )
    return middle


if __name__ == "__main__":
    raise SystemExit(main())
