"""Time of one cell: when each rank computed, communicated and waited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlcourse.measure.figure_hook import draw
from dlcourse.measure.run.clocks import Clocks, match
from dlcourse.measure.run.intervals import merge, overlap

COMPUTE_KINDS = ("forward", "backward", "optimizer", "compute")  # a rank's own work
SPAN_KINDS = (*COMPUTE_KINDS, "communication", "waiting")


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

    def figure(self, lang: str | None = None) -> Any:
        """One lane a rank (plotly)."""
        return draw("timeline", self.data(), lang)


def timeline_of(records: Sequence[dict[str, Any]], clocks: Clocks) -> Timeline:
    """The timelines of all ranks."""
    last_start = _last_starts(records, clocks)
    ranks = []
    for record in records:
        rank = record["rank"]
        spans = [
            [clocks.seconds(rank, s[0]), clocks.seconds(rank, s[1]), s[2], s[3]]
            for s in record["spans"]
        ]
        for e in record["comm"]:
            if e["end_ns"] is None:
                continue
            start, end = clocks.seconds(rank, e["start_ns"]), clocks.seconds(rank, e["end_ns"])
            name = f"{e['op']} #{e['seq']}"
            ready = min(max(last_start.get(match(rank, e), start), start), end)
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
                    [clocks.seconds(rank, s["start_ns"]), clocks.seconds(rank, s["end_ns"])]
                    for s in record["steps"]
                ],
            }
        )
    shares = [r["hidden_fraction"] for r in ranks if r["hidden_fraction"] is not None]
    wall = max((r["wall_s"] for r in records), default=0.0)
    return Timeline(wall, sum(shares) / len(shares) if shares else None, ranks)


def _last_starts(records: Sequence[dict[str, Any]], clocks: Clocks) -> dict[tuple, float]:
    """For each call, the moment at which the last rank started it."""
    last: dict[tuple, float] = {}
    for record in records:
        for e in record["comm"]:
            key = match(record["rank"], e)
            start = clocks.seconds(record["rank"], e["start_ns"])
            last[key] = max(start, last.get(key, start))
    return last
