"""One clock for all ranks of a cell: seconds since the first of them started it.

On one machine all ranks read the same monotonic clock. Between machines the offset is estimated
from collectives, which end at nearly the same moment everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any


class Clocks:
    """Turns the records' nanoseconds into seconds on the common clock."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self._shift = _offsets(records)  # rank -> ns to add
        self._origin = min((r["start_ns"] + self._shift[r["rank"]] for r in records), default=0)

    def seconds(self, rank: int, t_ns: int) -> float:
        """A moment of a rank's record."""
        return (t_ns + self._shift[rank] - self._origin) / 1e9


def match(rank: int, event: dict[str, Any]) -> tuple:
    """A key that the same call has on every rank that takes part in it."""
    if event["op"] == "send":
        return (event["group"], "p2p", rank, event["peer"], event["seq"])
    if event["op"] == "recv":
        return (event["group"], "p2p", event["peer"], rank, event["seq"])
    return (event["group"], event["seq"])


def _offsets(records: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Nanoseconds to add to each rank's times so that all are on the first record's clock.

    Zero on one machine. Elsewhere the median difference of the ends of the same collectives.
    """
    offsets = dict.fromkeys((r["rank"] for r in records), 0)
    if not records:
        return offsets
    base = records[0]
    reference = {match(base["rank"], e): e["end_ns"] for e in base["comm"] if e["end_ns"]}
    by_host = {base.get("host"): 0}
    for record in records[1:]:
        host = record.get("host")
        if host not in by_host:
            gaps = [
                reference[key] - e["end_ns"]
                for e in record["comm"]
                if e["end_ns"] and (key := match(record["rank"], e)) in reference
            ]
            by_host[host] = int(median(gaps)) if gaps else base["start_ns"] - record["start_ns"]
        offsets[record["rank"]] = by_host[host]
    return offsets
