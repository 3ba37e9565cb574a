"""Times and bytes of collectives, measured inside ranks.

    rows = ranks.run(measure, ["torch_all_reduce", "ring_all_reduce"], [4096, 16 << 20])[0]

One row for each algorithm and size: a plain dict, for a table, a figure or `cost.fit`.

Machines are noisy, so: everything runs a few times before the clock counts; the algorithms take
turns (A B A B ...), so that a slow moment hits all of them; and the median counts. The time of
one call is that of the slowest rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any

import torch
import torch.distributed as dist

from dlcourse.collectives import direct, one_sided, shared_calls
from dlcourse.collectives.compat import all_gather_single, reduce_scatter_single
from dlcourse.collectives.naive import naive_all_reduce
from dlcourse.collectives.ring import ring_all_gather, ring_all_reduce, ring_reduce_scatter
from dlcourse.collectives.shared import shared_all_reduce
from dlcourse.collectives.tcp_counters import wire_counters
from dlcourse.collectives.tree import tree_all_reduce, tree_broadcast, tree_reduce
from dlcourse.formulas.collective_time import bus_bandwidth
from dlcourse.formulas.traffic import algorithm_bytes

WARM_UP = 2
SHORT = 0.003  # seconds: several short calls share one reading of the clock

# Called with (x, y, part, group). x and y have the whole size; part is this rank's part of x.
CALLS: dict[str, Callable[..., Any]] = {
    "torch_all_reduce": lambda x, y, part, group: dist.all_reduce(x, group=group),
    "torch_reduce_scatter": lambda x, y, part, group: reduce_scatter_single(part, x, group=group),
    "torch_all_gather": lambda x, y, part, group: all_gather_single(x, part, group=group),
    "torch_all_to_all": lambda x, y, part, group: dist.all_to_all_single(y, x, group=group),
    "torch_broadcast": lambda x, y, part, group: dist.broadcast(x, group=group, group_src=0),
    "ring_all_reduce": lambda x, y, part, group: ring_all_reduce(x, group=group),
    "ring_reduce_scatter": lambda x, y, part, group: ring_reduce_scatter(x, group=group),
    "ring_all_gather": lambda x, y, part, group: ring_all_gather(x, group=group),
    "direct_all_reduce": lambda x, y, part, group: direct.all_reduce(x, group=group),
    "direct_reduce_scatter": lambda x, y, part, group: direct.reduce_scatter(part, x, group=group),
    "direct_all_gather": lambda x, y, part, group: direct.all_gather(x, part, group=group),
    "direct_all_to_all": lambda x, y, part, group: direct.all_to_all(y, x, group=group),
    "tree_all_reduce": lambda x, y, part, group: tree_all_reduce(x, group=group),
    "tree_broadcast": lambda x, y, part, group: tree_broadcast(x, group=group),
    "tree_reduce": lambda x, y, part, group: tree_reduce(x, group=group),
    "shared_all_reduce": lambda x, y, part, group: shared_all_reduce(x, group=group),
    "shared_reduce_scatter": lambda x, y, part, group: shared_calls.shared_reduce_scatter(
        part, x, group=group
    ),
    "shared_all_gather": lambda x, y, part, group: shared_calls.shared_all_gather(
        x, part, group=group
    ),
    "shared_all_to_all": lambda x, y, part, group: shared_calls.shared_all_to_all(
        y, x, group=group
    ),
    "shared_broadcast": lambda x, y, part, group: shared_calls.shared_broadcast(x, group=group),
    "one_sided_all_to_all": lambda x, y, part, group: one_sided.all_to_all(y, x, group=group),
    "naive_all_reduce": lambda x, y, part, group: naive_all_reduce(x, group=group),
}


def measure(
    names: Sequence[str],
    sizes: Sequence[int],
    *,
    repeats: int = 10,
    device: torch.device | str = "cpu",
    group: dist.ProcessGroup | None = None,
) -> list[dict[str, Any]]:
    """Median time and bytes on the wire. Call it in every rank; every rank gets the same rows.

    Args:
        names: keys of `CALLS`.
        sizes: bytes of the whole float32 tensor, as `cost` counts them. Rounded up, so that the
            elements divide by the number of ranks.
        repeats: timed turns of each algorithm.
        device: where the tensors live.
        group: the ranks that take part; all by default.

    Raises:
        ValueError: in every rank, before anything is sent: an unknown name, a size that is no
            whole number of bytes from 1 on, no turns.

    Returns:
        Rows with "algorithm", "collective", "ranks", "bytes"; "seconds" (median), "low" and
        "high" (quartiles), "samples" (all turns, in order, so that two algorithms can be
        compared turn by turn); "busbw" (bytes per second, as nccl-tests); "wire" (bytes that a
        rank sent, on average; None where the system does not count them), "wire_theory".
    """
    for name in names:
        if name not in CALLS:
            raise ValueError(f"names contains {name!r}: known are {', '.join(sorted(CALLS))}")
    for nbytes in sizes:
        if not nbytes >= 1 or nbytes % 1:
            raise ValueError(f"sizes contains {nbytes!r}: give whole numbers of bytes from 1 on")
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}: at least one timed turn is needed")
    rows = []
    for nbytes in sizes:
        p = dist.get_world_size(group)
        numel = -(-int(nbytes) // (4 * p)) * p
        x, y = torch.zeros(numel, device=device), torch.zeros(numel, device=device)  # (n,)
        part = x.view(p, -1)[dist.get_rank(group)]  # (n / p,)
        calls = {name: _bind(CALLS[name], x, y, part, group) for name in names}
        samples = _take_turns(calls, repeats, x.device, group)
        for name, call in calls.items():
            rows.append(_row(name, 4 * numel, p, samples[name], _wire(call, x.device, group)))
    return rows


def _bind(call: Callable[..., Any], *args: Any) -> Callable[[], None]:
    return lambda: call(*args)


def _take_turns(
    calls: dict[str, Callable[[], None]],
    repeats: int,
    device: torch.device,
    group: dist.ProcessGroup | None,
) -> dict[str, list[float]]:
    """Seconds for each turn of each call: those of the slowest rank."""
    times = torch.zeros(len(calls), repeats, dtype=torch.float64, device=device)
    inner = [1] * len(calls)  # calls for each reading of the clock
    for turn in range(-WARM_UP, repeats):
        for row, call in enumerate(calls.values()):
            seconds = _time(call, inner[row], device, group)
            if turn >= 0:
                times[row, turn] = seconds
        if turn == -1 and repeats:
            inner = _how_many(calls, device, group)
    dist.all_reduce(times, op=dist.ReduceOp.MAX, group=group)
    return dict(zip(calls, times.tolist(), strict=True))


def _how_many(
    calls: dict[str, Callable[[], None]], device: torch.device, group: dist.ProcessGroup | None
) -> list[int]:
    """How many calls take `SHORT` seconds; at most 20. The same number in every rank."""
    once = [_time(call, 1, device, group) for call in calls.values()]
    slowest = torch.tensor(once, dtype=torch.float64, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=group)
    return [max(1, min(20, int(SHORT / seconds))) for seconds in slowest.tolist()]


def _time(
    call: Callable[[], None], inner: int, device: torch.device, group: dist.ProcessGroup | None
) -> float:
    dist.barrier(group=group)
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(inner):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / inner


def _wire(
    call: Callable[[], None], device: torch.device, group: dist.ProcessGroup | None
) -> float | None:
    """Bytes that a rank sends in one call, on average over the ranks."""
    before = wire_counters()
    call()
    after = wire_counters()
    if before is None or after is None or device.type != "cpu":
        return None
    sent = torch.tensor([after[0] - before[0]], dtype=torch.float64)
    dist.all_reduce(sent, group=group)
    return sent.item() / dist.get_world_size(group)


def _row(
    name: str, nbytes: int, p: int, samples: list[float], wire: float | None
) -> dict[str, Any]:
    seconds = median(samples)
    low, _, high = quantiles(samples, n=4) if len(samples) > 1 else samples * 3
    collective = name.removeprefix("one_").partition("_")[2]
    return {
        "algorithm": name,
        "collective": collective,
        "ranks": p,
        "bytes": nbytes,
        "seconds": seconds,
        "low": low,
        "high": high,
        "samples": samples,
        "busbw": bus_bandwidth(collective, nbytes, p, seconds),
        "wire": wire,
        "wire_theory": _wire_theory(name, nbytes, p),
    }


def _wire_theory(name: str, nbytes: int, p: int) -> float:
    """By formula; for torch's own, the least that any algorithm can send."""
    if name.startswith(("shared", "one_sided")):
        return 0.0
    maker, _, collective = name.partition("_")
    if maker == "torch":
        name = f"{'tree' if collective == 'broadcast' else 'direct'}_{collective}"
    return algorithm_bytes(name, nbytes, p)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
