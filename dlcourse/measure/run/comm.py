"""Communication of one cell: calls and bytes of each collective, by rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dlcourse.formulas.traffic import wire_bytes
from dlcourse.measure.figure_hook import draw
from dlcourse.measure.run.clocks import Clocks

_CALL_KEYS = ("op", "seq", "group", "group_size", "bytes", "dtype", "async", "peer")


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

    `bytes` is the buffer size S of `formulas.traffic`; `wire_bytes` is what theory says that one
    rank sends; `wire` is what the system's counters saw on this machine. `time_s` is the sum
    over calls from issue to completion, waiting for late ranks included. The list `calls` and
    `time_s` have the first 50,000 calls of a rank in a cell; the other numbers have all.
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

    def figure(self, lang: str | None = None) -> Any:
        """Bars of bytes by collective and rank (plotly)."""
        return draw("comm", self.data(), lang)


def comm_of(records: Sequence[dict[str, Any]], clocks: Clocks) -> Comm:
    """The communication of all ranks."""
    ranks: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    by_group_size: dict[tuple[str, int], list[dict[str, Any]]] = {}  # each rank's sums
    for record in records:
        rank, events = record["rank"], record["comm"]
        calls += [_call(rank, event, clocks) for event in events]
        counted = [*events, *record.get("comm_rest", [])]
        by_op = _sums((event["op"], event) for event in counted)
        ranks.append(
            {"rank": rank}
            | {k: sum(o[k] for o in by_op.values()) for k in ("calls", "bytes", "wire_bytes")}
            | {"ops": by_op}
        )
        for key, row in _sums(((e["op"], e["group_size"]), e) for e in counted).items():
            by_group_size.setdefault(key, []).append(row)
    ops: list[dict[str, Any]] = [
        {"op": op, "group_size": n} | {k: sum(r[k] for r in rows) / len(rows) for k in rows[0]}
        for (op, n), rows in by_group_size.items()
    ]
    ops.sort(key=lambda o: -o["wire_bytes"])
    calls.sort(key=lambda c: (c["start_s"], c["rank"]))
    world = max((r["world_size"] for r in records), default=0)
    return Comm(world, ops, ranks, calls, _machine_wire(records))


def _call(rank: int, event: dict[str, Any], clocks: Clocks) -> dict[str, Any]:
    end = event["end_ns"]
    return {key: event[key] for key in _CALL_KEYS} | {
        "rank": rank,
        "start_s": clocks.seconds(rank, event["start_ns"]),
        "end_s": None if end is None else clocks.seconds(rank, end),
    }


def _sums(events: Iterable[tuple[Any, dict[str, Any]]]) -> dict[Any, dict[str, Any]]:
    """What the events of each key add up to."""
    sums: dict[Any, dict[str, Any]] = {}
    for key, event in events:
        row = sums.setdefault(key, {"calls": 0, "bytes": 0, "wire_bytes": 0.0, "time_s": 0.0})
        sent = event.get("sent_bytes")  # where it is known better than by theory
        if sent is None:
            sent = wire_bytes(event["op"], event["bytes"], event["group_size"])
        row["calls"] += event.get("calls", 1)
        row["bytes"] += event["bytes"]
        row["wire_bytes"] += sent
        if event.get("end_ns") is not None:
            row["time_s"] += (event["end_ns"] - event["start_ns"]) / 1e9
    return sums


def _machine_wire(records: Sequence[dict[str, Any]]) -> dict[str, float] | None:
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
