"""The record of a soak's trials, a line of JSON each, and the figures of it."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlcourse.bench.soak.trial import Scenario, fine
from dlcourse.course.run import machine


class Record:
    """The trials that have been done; a file, so that a soak goes on where it was interrupted.

    Args:
        folder: of `trials.jsonl`.
        lessons: of which kind: whole lessons, or small cells.

    Attributes:
        skipped: scenario -> what it needs and this machine lacks.
    """

    def __init__(self, folder: Path, *, lessons: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.lessons = folder / "trials.jsonl", lessons
        self.skipped: dict[str, str] = {}
        self._lines: dict[tuple[str, int, int], dict[str, Any]] = {}
        if self.path.exists():
            text = self.path.read_text(encoding="utf-8")
            if text and not text.endswith("\n"):
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n")
            for row in text.splitlines():
                try:
                    line = json.loads(row)
                except ValueError:  # the last line of a soak that was killed
                    continue
                if line["lessons"] == lessons:
                    self._keep(line)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Of each trial of this kind the last line, should it have been done again."""
        return list(self._lines.values())

    def has(self, scenario: str, number: int, size: int, *, as_it_should: bool = False) -> bool:
        """Whether a trial has been done; and, if asked, ended as it should."""
        line = self._lines.get((scenario, number, size))
        return line is not None and (fine(line) or not as_it_should)

    def add(self, line: dict[str, Any]) -> None:
        now = datetime.datetime.now(datetime.UTC)
        line = {"date": now.isoformat(timespec="seconds"), **line}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._keep(line)

    def _keep(self, line: dict[str, Any]) -> None:
        self._lines[line["scenario"], line["trial"], line["size"]] = line


def figures(record: Record, scenarios: Sequence[Scenario]) -> dict[str, Any]:
    """By scenario: how many of how many, how they ended, the slowest, what was left."""
    found: dict[str, Any] = {}
    for scenario in scenarios:
        lines = [x for x in record.lines if x["scenario"] == scenario.name]
        if not lines:
            why = record.skipped.get(scenario.name, "not yet begun")
            found[scenario.name] = {"of": scenario.count, "run": 0, "left_out": why}
            continue
        done: Counter[str] = Counter()
        for line in lines:
            done[line["ending"]] += line["size"]
        found[scenario.name] = {
            "unit": scenario.unit,
            "of": scenario.count,
            "run": sum(line["size"] for line in lines),
            "endings": dict(done.most_common()),
            "limit_s": scenario.limit,
            "slowest_s": max(line["seconds"] for line in lines),
            "left_running": sum(len(line["left_running"]) for line in lines),
            "left_files": sum(len(line["left_files"]) for line in lines),
        }
        if scenario.name in ("pools", "malformed frames"):
            most = max(lines, key=lambda line: line["size"])
            found[scenario.name]["growth"] = most["figures"]
    return found


def write(record: Record, scenarios: Sequence[Scenario], path: Path) -> None:
    """Write the figures."""
    here = machine()
    kept = ("cores", "memory_bytes", "python", "torch", "dlcourse")
    report = {
        "about": "What `make soak` found: random faults, and how what they hit has ended. "
        "seconds: from the fault to that end; of pools and busy cores: for one of them.",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {key: here[key] for key in kept},
        "lessons": record.lessons,
        "trials": len(record.lines),
        "as_it_should": sum(map(fine, record.lines)),
        "scenarios": figures(record, scenarios),
        "not_as_it_should": [
            {
                key: line[key]
                for key in ("scenario", "trial", "ending", "said", "left_running", "left_files")
            }
            for line in record.lines
            if not fine(line)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def table(record: Record, scenarios: Sequence[Scenario]) -> str:
    """The figures as lines."""
    lines = []
    for name, row in figures(record, scenarios).items():
        if "endings" not in row:
            lines.append(f"{name:30} left out: {row['left_out']}")
            continue
        ends = ", ".join(f"{count} {kind}" for kind, count in row["endings"].items())
        lines.append(
            f"{name:30} {row['run']} of {row['of']} {row['unit']}: {ends}; slowest "
            f"{row['slowest_s']:.1f} s of {row['limit_s']:g}; left {row['left_running']} "
            f"processes, {row['left_files']} files"
        )
    return "\n".join(lines)
