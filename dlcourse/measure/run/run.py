"""What was measured in one cell, as plain data: bytes, memory, time, throughput.

`Run` takes the records of all ranks (see `dlcourse.measure.recorder`) and answers the
questions that a lesson asks. Nothing in this folder imports torch. Each part has

- `.data()`: a JSON-able dict, whose shape is in the class docstring. Figures take this dict.
- `.figure(lang=None)`: a plotly figure.

Times in `.data()` are seconds since the first rank started the cell, on one clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dlcourse.measure.run.clocks import Clocks
from dlcourse.measure.run.comm import comm_of
from dlcourse.measure.run.memory import memory_of
from dlcourse.measure.run.throughput import throughput_of
from dlcourse.measure.run.timeline import timeline_of
from dlcourse.words.units import human_bytes


class Run:
    """What all ranks measured in one cell.

    Args:
        records: one dict a rank, as `Recorder.stop()` returns it. Order does not matter.

    Attributes:
        memory, timeline, comm, throughput: see `Memory`, `Timeline`, `Comm`, `Throughput`.
        records: the input, sorted by rank.
    """

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        self.records = sorted((r for r in records if r), key=lambda r: r["rank"])
        clocks = Clocks(self.records)
        self.comm = comm_of(self.records, clocks)
        self.memory = memory_of(self.records, clocks)
        self.timeline = timeline_of(self.records, clocks)
        self.throughput = throughput_of(self.records)

    def __repr__(self) -> str:
        peak = human_bytes(self.memory.peak_bytes)
        calls = max((r["calls"] for r in self.comm.ranks), default=0)
        return (
            f"Run(ranks={len(self.records)}, wall={self.timeline.wall_s:.3g} s, "
            f"collectives={calls} a rank, peak={peak} a rank, steps={self.throughput.steps})"
        )
