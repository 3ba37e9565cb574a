"""What was measured in one cell, as plain data: bytes, memory, time, throughput.

`Run` takes the records of all ranks (see `dlcourse.measure.recorder`) and answers the
questions that a lesson asks. Nothing here imports torch. Each part has

- `.data()`: a JSON-able dict, whose shape is in the class docstring. Figures take this dict.
- `.table()`: the same as text, aligned, for a notebook's output.
- `.figure(lang=None)`: a plotly figure from `dlcourse.figures.recorded`.

Times in `.data()` are seconds since the first rank started the cell, on one clock.
On one machine all ranks read the same monotonic clock. Between machines the offset is
estimated from collectives, which end at nearly the same moment everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from dlcourse.words.text_table import text_table
from dlcourse.words.units import human_bytes

CATEGORIES = (
    "parameters",
    "gradients",
    "optimizer_state",
    "activations",
    "communication",
    "other",
)
SPAN_KINDS = ("forward", "backward", "optimizer", "compute", "communication", "waiting")
COMPUTE_KINDS = frozenset({"forward", "backward", "optimizer", "compute"})

Record = dict[str, Any]
Interval = tuple[float, float]


# --------------------------------------------------------------------------- helpers


def wire_bytes(op: str, size: int, group_size: int) -> float:
    """Bytes that one rank sends for a collective, in theory (average over the group).

    Args:
        op: torch's name of the collective: "all_reduce", "all_gather", ...
        size: S, bytes of the whole buffer. For all_gather and gather this is the output, for
            reduce_scatter, scatter and all_to_all the input; for the others the tensor itself.
        group_size: n, ranks in the group.

    Returns:
        all_reduce 2(n-1)/n S; all_gather, reduce_scatter, all_to_all, broadcast and reduce
        (n-1)/n S (ring or pipeline: the least that any algorithm can send); gather and scatter
        (n-1)/n^2 S; send S; recv, barrier 0.

    Source: Patarasu and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations", 2009.
    """
    n = group_size
    if n <= 1 or op in ("barrier", "recv"):
        return 0.0
    if op == "send":
        return float(size)
    if op == "all_reduce":
        return 2 * (n - 1) / n * size
    if op in ("gather", "scatter"):
        return (n - 1) / n**2 * size
    return (n - 1) / n * size


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """The union of intervals as disjoint, sorted intervals."""
    merged: list[Interval] = []
    for start, end in sorted(i for i in intervals if i[1] > i[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def overlap(a: Sequence[Interval], b: Sequence[Interval]) -> float:
    """Length of the intersection of two unions, each as `merge` returns it."""
    total, j = 0.0, 0
    for start, end in a:
        while j < len(b) and b[j][1] <= start:
            j += 1
        k = j
        while k < len(b) and b[k][0] < end:
            total += min(end, b[k][1]) - max(start, b[k][0])
            k += 1
    return total


# --------------------------------------------------------------------------- the parts


@dataclass(frozen=True)
class Comm:
    """Bytes and calls of each collective, by rank.

    `.data()`:
        {"world_size": int,
         "ops": [{"op": "all_reduce", "group_size": 4,
                  "calls": float, "bytes": float, "wire_bytes": float, "time_s": float}, ...],
                 # averages per rank over the ranks that took part; biggest wire_bytes first
         "ranks": [{"rank": int, "calls": int, "bytes": int, "wire_bytes": float,
                    "ops": {"all_reduce": {"calls": int, "bytes": int,
                                           "wire_bytes": float, "time_s": float}, ...}}, ...],
         "calls": [{"op", "seq", "group", "group_size", "bytes", "dtype", "async", "peer",
                    "rank": int, "start_s": float, "end_s": float|None}, ...],
         "wire": {"sent": int, "received": int, "sent_per_rank": float}|None}

    `bytes` is the buffer size S of `wire_bytes()`; `wire_bytes` is what theory says that one
    rank sends; `wire` is what the system's counters saw on this machine. `time_s` is the sum
    over calls from issue to completion, waiting for late ranks included.
    """

    world_size: int
    ops: list[dict[str, Any]]
    ranks: list[dict[str, Any]]
    calls: list[dict[str, Any]]
    wire: dict[str, float] | None

    def data(self) -> dict[str, Any]:
        """See the class docstring."""
        return {
            "world_size": self.world_size,
            "ops": self.ops,
            "ranks": self.ranks,
            "calls": self.calls,
            "wire": self.wire,
        }

    def table(self) -> str:
        """One line per collective: calls, bytes and theoretical wire bytes, per rank."""
        rows = [
            [
                o["op"],
                str(o["group_size"]),
                f"{o['calls']:g}",
                human_bytes(o["bytes"]),
                human_bytes(o["wire_bytes"]),
                f"{o['time_s'] * 1e3:.1f}",
            ]
            for o in self.ops
        ]
        return text_table(["op", "ranks", "calls", "bytes", "sent (theory)", "ms"], rows)

    def figure(self, lang: str | None = None) -> Any:
        """Bars of bytes by collective and rank (plotly)."""
        from dlcourse.figures.recorded import comm_figure

        return comm_figure(self.data(), lang)


@dataclass(frozen=True)
class Memory:
    """Live tensor storages by category.

    `.data()`:
        {"categories": ["parameters", "gradients", "optimizer_state", "activations",
                        "communication", "other"],
         "ranks": [{"rank": int,
                    "peak_bytes": int,             # largest total at one moment
                    "at_peak": {category: bytes},  # what it consisted of; sums to peak_bytes
                    "peaks": {category: bytes},    # each category's own largest value
                    "end": {category: bytes},      # when the cell ended
                    "pss_bytes": int,              # the whole process, shared pages divided
                    "series": [[t_s, parameters, gradients, optimizer_state, activations,
                                communication, other], ...]}, ...]}
    """

    ranks: list[dict[str, Any]]

    def data(self) -> dict[str, Any]:
        """See the class docstring."""
        return {"categories": list(CATEGORIES), "ranks": self.ranks}

    @property
    def peak_bytes(self) -> int:
        """The largest peak over the ranks, in bytes."""
        return max((r["peak_bytes"] for r in self.ranks), default=0)

    def at_peak(self, category: str) -> list[int]:
        """Bytes of a category at the moment of each rank's own peak, one number a rank."""
        _check_category(category)
        return [r["at_peak"][category] for r in self.ranks]

    def peaks(self, category: str) -> list[int]:
        """The category's own largest bytes, one number a rank."""
        _check_category(category)
        return [r["peaks"][category] for r in self.ranks]

    def table(self) -> str:
        """One line per rank: what the peak consisted of."""
        rows = [
            [str(r["rank"])]
            + [human_bytes(r["at_peak"][c]) for c in CATEGORIES]
            + [human_bytes(r["peak_bytes"])]
            for r in self.ranks
        ]
        return text_table(["rank", *CATEGORIES, "peak"], rows)

    def figure(self, lang: str | None = None) -> Any:
        """Stacked bars of the peak by category and rank (plotly)."""
        from dlcourse.figures.recorded import memory_figure

        return memory_figure(self.data(), lang)

    def over_time(self, lang: str | None = None) -> Any:
        """Stacked areas over time (plotly)."""
        from dlcourse.figures.recorded import memory_over_time_figure

        return memory_over_time_figure(self.data(), lang)


@dataclass(frozen=True)
class Timeline:
    """When each rank computed, communicated and waited.

    `.data()`:
        {"wall_s": float, "hidden_fraction": float|None,      # mean over ranks
         "ranks": [{"rank": int,
                    "spans": [[start_s, end_s, kind, name], ...],   # sorted by start
                        # kind: "forward" "backward" "optimizer" "compute" (own work, never
                        # overlapping each other) and "communication" "waiting" (may overlap
                        # own work); name: "all_reduce #3" for the last two, else "" or a phase
                    "totals": {kind: seconds},                # union of that kind's spans
                    "hidden_fraction": float|None,            # None: no communication
                    "steps": [[start_s, end_s], ...]}, ...]}

    A collective is split in two: "waiting" from this rank's start until the last rank of the
    group has started the same call, and "communication" from there to its end. The hidden
    fraction is the share of communication during which this rank also did its own work.
    """

    wall_s: float
    hidden_fraction: float | None
    ranks: list[dict[str, Any]]

    def data(self) -> dict[str, Any]:
        """See the class docstring."""
        return {
            "wall_s": self.wall_s,
            "hidden_fraction": self.hidden_fraction,
            "ranks": self.ranks,
        }

    def table(self) -> str:
        """One line per rank: milliseconds by kind, and the hidden share."""
        rows = [
            [str(r["rank"])]
            + [f"{r['totals'][k] * 1e3:.1f}" for k in SPAN_KINDS]
            + ["-" if r["hidden_fraction"] is None else f"{r['hidden_fraction']:.0%}"]
            for r in self.ranks
        ]
        return text_table(["rank", *(f"{k} ms" for k in SPAN_KINDS), "hidden"], rows)

    def figure(self, lang: str | None = None) -> Any:
        """One lane a rank (plotly)."""
        from dlcourse.figures.recorded import timeline_figure

        return timeline_figure(self.data(), lang)


@dataclass(frozen=True)
class Throughput:
    """Step time and tokens per second, from `mark_step`.

    `.data()`:
        {"steps": int,                       # steps that every rank finished
         "step_s": float|None,               # median over steps of the slowest rank's time
         "tokens_per_s": float|None,         # tokens of all ranks in a step / its time, median
         "flops_per_s": float|None,          # all ranks; flops in the cell / time in its steps
         "flops": int,                       # all ranks, whole cell
         "wall_s": float,
         "ranks": [{"rank": int, "step_s": [float, ...], "tokens": [int, ...],
                    "loss": [float|None, ...], "flops": int}, ...]}

    The first step (allocation, warm-up) is left out of the medians where there are three or
    more. `step_s` is None where the cell never called `mark_step`.
    """

    steps: int
    step_s: float | None
    tokens_per_s: float | None
    flops_per_s: float | None
    flops: int
    wall_s: float
    ranks: list[dict[str, Any]]

    def data(self) -> dict[str, Any]:
        """See the class docstring."""
        return {
            "steps": self.steps,
            "step_s": self.step_s,
            "tokens_per_s": self.tokens_per_s,
            "flops_per_s": self.flops_per_s,
            "flops": self.flops,
            "wall_s": self.wall_s,
            "ranks": self.ranks,
        }

    def table(self) -> str:
        """Steps, milliseconds a step, tokens a second, GFLOP a second."""
        row = [
            str(self.steps),
            "-" if self.step_s is None else f"{self.step_s * 1e3:.1f}",
            "-" if self.tokens_per_s is None else f"{self.tokens_per_s:,.0f}",
            "-" if self.flops_per_s is None else f"{self.flops_per_s / 1e9:.2f}",
        ]
        return text_table(["steps", "ms/step", "tokens/s", "GFLOP/s"], [row])

    def figure(self, lang: str | None = None) -> Any:
        """Step time over steps, by rank (plotly)."""
        from dlcourse.figures.recorded import throughput_figure

        return throughput_figure(self.data(), lang)


def _check_category(category: str) -> None:
    if category not in CATEGORIES:
        raise ValueError(f"category={category!r} is not one of {', '.join(CATEGORIES)}; use one.")


# --------------------------------------------------------------------------- the run


class Run:
    """What all ranks measured in one cell.

    Args:
        records: one dict a rank, as `Recorder.stop()` returns it. Order does not matter.

    Attributes:
        memory, timeline, comm, throughput: see `Memory`, `Timeline`, `Comm`, `Throughput`.
        wire: `comm.wire`.
        records: the input, sorted by rank.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.records: list[Record] = sorted((r for r in records if r), key=lambda r: r["rank"])
        self._shift = _clock_offsets(self.records)  # rank -> ns to add
        self._origin = min(
            (r["start_ns"] + self._shift[r["rank"]] for r in self.records), default=0
        )
        self.comm = self._comm()
        self.memory = self._memory()
        self.timeline = self._timeline()
        self.throughput = self._throughput()
        self.wire = self.comm.wire

    def to_json(self, **dumps: Any) -> str:
        """Everything as one JSON text: {"world_size", "comm", "memory", ...}."""
        return json.dumps(
            {
                "world_size": self.comm.world_size,
                "comm": self.comm.data(),
                "memory": self.memory.data(),
                "timeline": self.timeline.data(),
                "throughput": self.throughput.data(),
            },
            **dumps,
        )

    def __repr__(self) -> str:
        peak = human_bytes(self.memory.peak_bytes)
        calls = max((r["calls"] for r in self.comm.ranks), default=0)
        return (
            f"Run(ranks={len(self.records)}, wall={self.timeline.wall_s:.3g} s, "
            f"collectives={calls} a rank, peak={peak} a rank, steps={self.throughput.steps})"
        )

    # ------------------------------------------------------------------ parts

    def _seconds(self, rank: int, t_ns: int) -> float:
        return (t_ns + self._shift[rank] - self._origin) / 1e9

    def _comm(self) -> Comm:
        ranks, calls = [], []
        per_op: dict[tuple[str, int], list[dict[str, float]]] = {}
        for record in self.records:
            rank = record["rank"]
            by_op: dict[str, dict[str, float]] = {}
            by_size: dict[tuple[str, int], dict[str, float]] = {}
            for e in record["comm"]:
                sent = e.get("sent_bytes")
                if sent is None:
                    sent = wire_bytes(e["op"], e["bytes"], e["group_size"])
                took = (e["end_ns"] - e["start_ns"]) / 1e9 if e["end_ns"] is not None else 0.0
                calls.append(
                    {k: e[k] for k in _CALL_KEYS}
                    | {
                        "rank": rank,
                        "start_s": self._seconds(rank, e["start_ns"]),
                        "end_s": None if e["end_ns"] is None else self._seconds(rank, e["end_ns"]),
                    }
                )
                for table, key in ((by_op, e["op"]), (by_size, (e["op"], e["group_size"]))):
                    row = table.setdefault(
                        key, {"calls": 0, "bytes": 0, "wire_bytes": 0.0, "time_s": 0.0}
                    )
                    row["calls"] += 1
                    row["bytes"] += e["bytes"]
                    row["wire_bytes"] += sent
                    row["time_s"] += took
            for key, row in by_size.items():
                per_op.setdefault(key, []).append(row)
            ranks.append(
                {"rank": rank}
                | {k: sum(o[k] for o in by_op.values()) for k in ("calls", "bytes", "wire_bytes")}
                | {"ops": by_op}
            )
        ops = [
            {"op": op, "group_size": n} | {k: sum(r[k] for r in rows) / len(rows) for k in rows[0]}
            for (op, n), rows in per_op.items()
        ]
        ops.sort(key=lambda o: -o["wire_bytes"])
        calls.sort(key=lambda c: (c["start_s"], c["rank"]))
        world = max((r["world_size"] for r in self.records), default=0)
        return Comm(world, ops, ranks, calls, _machine_wire(self.records))

    def _memory(self) -> Memory:
        ranks = []
        for record in self.records:
            rank, m = record["rank"], record["memory"]
            ranks.append(
                {
                    "rank": rank,
                    "peak_bytes": m["peak_bytes"],
                    "at_peak": m["at_peak"],
                    "peaks": m["peaks"],
                    "end": m["end"],
                    "pss_bytes": record["pss_bytes"],
                    "series": [[self._seconds(rank, p[0]), *p[1:]] for p in m["series"]],
                }
            )
        return Memory(ranks)

    def _timeline(self) -> Timeline:
        last_start = self._last_starts()
        ranks = []
        for record in self.records:
            rank = record["rank"]
            spans = [
                [self._seconds(rank, s[0]), self._seconds(rank, s[1]), s[2], s[3]]
                for s in record["spans"]
            ]
            for e in record["comm"]:
                if e["end_ns"] is None:
                    continue
                start, end = self._seconds(rank, e["start_ns"]), self._seconds(rank, e["end_ns"])
                name = f"{e['op']} #{e['seq']}"
                ready = min(max(last_start.get(_match(rank, e), start), start), end)
                if ready > start:
                    spans.append([start, ready, "waiting", name])
                if end > ready:
                    spans.append([ready, end, "communication", name])
            spans.sort(key=lambda s: s[:2])
            union = {k: merge((s[0], s[1]) for s in spans if s[2] == k) for k in SPAN_KINDS}
            totals = {k: sum(e - s for s, e in union[k]) for k in SPAN_KINDS}
            own = merge((s[0], s[1]) for s in spans if s[2] in COMPUTE_KINDS)
            hidden = None
            if totals["communication"] > 0:
                hidden = overlap(union["communication"], own) / totals["communication"]
            ranks.append(
                {
                    "rank": rank,
                    "spans": spans,
                    "totals": totals,
                    "hidden_fraction": hidden,
                    "steps": [
                        [self._seconds(rank, s["start_ns"]), self._seconds(rank, s["end_ns"])]
                        for s in record["steps"]
                    ],
                }
            )
        shares = [r["hidden_fraction"] for r in ranks if r["hidden_fraction"] is not None]
        wall = max((r["wall_s"] for r in self.records), default=0.0)
        return Timeline(wall, sum(shares) / len(shares) if shares else None, ranks)

    def _last_starts(self) -> dict[tuple, float]:
        """For each call, the moment at which the last rank started it."""
        last: dict[tuple, float] = {}
        for record in self.records:
            for e in record["comm"]:
                key = _match(record["rank"], e)
                start = self._seconds(record["rank"], e["start_ns"])
                last[key] = max(start, last.get(key, start))
        return last

    def _throughput(self) -> Throughput:
        ranks = [
            {
                "rank": r["rank"],
                "step_s": [(s["end_ns"] - s["start_ns"]) / 1e9 for s in r["steps"]],
                "tokens": [s["tokens"] for s in r["steps"]],
                "loss": [s["loss"] for s in r["steps"]],
                "flops": r["flops"],
            }
            for r in self.records
        ]
        marked = [r for r in ranks if r["step_s"]]
        n = min((len(r["step_s"]) for r in marked), default=0)
        slowest = [max(r["step_s"][i] for r in marked) for i in range(n)]
        tokens = [sum(r["tokens"][i] for r in marked) for i in range(n)]
        warm = slice(1 if n >= 3 else 0, n)
        rates = [t / s for t, s in zip(tokens[warm], slowest[warm], strict=True) if s > 0 and t]
        flops = sum(r["flops"] for r in ranks)
        in_steps = sum(slowest)
        return Throughput(
            steps=n,
            step_s=median(slowest[warm]) if n else None,
            tokens_per_s=median(rates) if rates else None,
            flops_per_s=flops / in_steps if in_steps and flops else None,
            flops=flops,
            wall_s=max((r["wall_s"] for r in self.records), default=0.0),
            ranks=ranks,
        )


_CALL_KEYS = ("op", "seq", "group", "group_size", "bytes", "dtype", "async", "peer")


def _match(rank: int, e: dict[str, Any]) -> tuple:
    """A key that the same call has on every rank that takes part in it."""
    if e["op"] == "send":
        return (e["group"], "p2p", rank, e["peer"], e["seq"])
    if e["op"] == "recv":
        return (e["group"], "p2p", e["peer"], rank, e["seq"])
    return (e["group"], e["seq"])


def _clock_offsets(records: Sequence[Record]) -> dict[int, int]:
    """Nanoseconds to add to each rank's times so that all are on the first record's clock.

    Zero on one machine. Elsewhere the median difference of the ends of the same collectives.
    """
    offsets = dict.fromkeys((r["rank"] for r in records), 0)
    if not records:
        return offsets
    base = records[0]
    reference = {_match(base["rank"], e): e["end_ns"] for e in base["comm"] if e["end_ns"]}
    by_host = {base.get("host"): 0}
    for record in records[1:]:
        host = record.get("host")
        if host not in by_host:
            gaps = [
                reference[key] - e["end_ns"]
                for e in record["comm"]
                if e["end_ns"] and (key := _match(record["rank"], e)) in reference
            ]
            by_host[host] = int(median(gaps)) if gaps else base["start_ns"] - record["start_ns"]
        offsets[record["rank"]] = by_host[host]
    return offsets


def _machine_wire(records: Sequence[Record]) -> dict[str, float] | None:
    """Bytes that the system's counters saw during the cell.

    The counters belong to a machine, not to a process: every rank on it reads the same ones.
    So take one reading a machine (the largest: the rank whose cell took longest) and add them.
    """
    hosts: dict[Any, tuple[int, int]] = {}
    for record in records:
        if record.get("wire"):
            w = record["wire"]
            best = hosts.get(record.get("host"), (0, 0))
            hosts[record.get("host")] = max(best, (w["sent"], w["received"]))
    if not hosts:
        return None
    sent = sum(s for s, _ in hosts.values())
    return {
        "sent": sent,
        "received": sum(r for _, r in hosts.values()),
        "sent_per_rank": sent / len(records),
    }
