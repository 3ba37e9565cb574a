"""How numbers leave a notebook that runs headless: one JSON line each, appended to a file.

``dlcourse run`` names the file in the variable ``DLCOURSE_METRICS``; without it nothing is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VARIABLE = "DLCOURSE_METRICS"


def append(kind: str, **values: Any) -> None:
    """Append ``{"kind": kind, **values}`` to the metrics file, if there is one."""
    path = os.environ.get(VARIABLE)
    if path:
        line = json.dumps({"kind": kind, **values}, ensure_ascii=False, default=_plain)
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a line cut off by a kill is left out."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def run_summary(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is kept of a recorded cell, rank by rank: totals, not every event."""
    summary = []
    for record in records:
        comm: dict[str, dict[str, int]] = {}
        for event in record.get("comm", []):
            total = comm.setdefault(event["op"], {"calls": 0, "bytes": 0})
            total["calls"] += 1
            total["bytes"] += event["bytes"]
        steps = record.get("steps", [])
        summary.append(
            {
                "rank": record["rank"],
                "wall_s": record["wall_s"],
                "comm": comm,
                "memory_peaks": record.get("memory", {}).get("peaks", {}),
                "peak_bytes": record.get("memory", {}).get("peak_bytes"),
                "pss_bytes": record.get("pss_bytes"),
                "flops": record.get("flops"),
                "wire": record.get("wire"),
                "step_s": [(step["end_ns"] - step["start_ns"]) / 1e9 for step in steps],
                "loss": [step.get("loss") for step in steps],
            }
        )
    return summary


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays as plain numbers; anything else as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
