"""The table of a class: a row for each file that was handed in, whatever it does."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlcourse.course.grading.sandbox import Ended, Limits, available, run
from dlcourse.course.grading.submission import MODULE

LARGEST = 64 << 20  # bytes of a notebook


@dataclass(frozen=True)
class Row:
    """What became of one submission.

    status: graded; or time, memory, crashed, failed, where its exercises count as far as they came;
        or not a notebook, no exercise.
    exercises: for each, how many of its cases were right, and of how many.
    """

    submission: str
    status: str
    note: str = ""
    lesson: str = ""
    seconds: float = 0.0
    exercises: dict[str, tuple[int, int]] = field(default_factory=dict)
    passed: int = 0


def grade(
    folder: Path, out: Path, limits: Limits, *, trust: bool, tell: Callable[[Row], None]
) -> list[Row]:
    """Grade every file in a folder and its subfolders; hidden ones are left out.

    trust: run submissions as plain processes where they cannot be shut in.

    Raises:
        ValueError: no such folder, nothing in it, no place for the table, or no bubblewrap.
    """
    if not folder.is_dir():
        raise ValueError(f"DIR={str(folder)!r} is no folder: give the one with the submissions")
    files = sorted(_submissions(folder))
    if not files:
        raise ValueError(f"DIR={str(folder)!r} holds no file: give the one with the submissions")
    if not os.access(out.resolve().parent, os.W_OK) or out.is_dir():
        raise ValueError(f"out={str(out)!r} cannot be written: give a file in a folder of yours")
    shut_in = available()
    if not (shut_in or trust):
        raise ValueError(
            "bubblewrap (bwrap) does not run here, so a submission could read, change and send "
            "whatever you can. Install it (apt install bubblewrap), or give --trust for "
            "submissions that you have read"
        )
    rows: list[Row] = []
    for file in files:
        row = _row(file.relative_to(folder).as_posix(), file, limits, shut_in=shut_in)
        rows.append(row)
        write(rows, out)  # after each: a grader that is stopped keeps what it has
        tell(row)
    return rows


def write(rows: list[Row], out: Path) -> None:
    """Write the table as CSV, whole or not at all."""
    ids = sorted({id for row in rows for id in row.exercises})
    part = out.with_name(f".{out.name}.part")
    with part.open("w", newline="", encoding="utf-8-sig") as file:  # Excel needs the mark for 한글
        table = csv.writer(file)
        table.writerow(["submission", "lesson", "status", "passed", "of", "seconds", *ids, "note"])
        for row in rows:
            found = [row.exercises.get(id) for id in ids]
            cells = ["" if one is None else f"{one[0]}/{one[1]}" for one in found]
            seconds = f"{row.seconds:.0f}"
            about = [_plain(row.submission), row.lesson, row.status, row.passed]
            table.writerow([*about, len(row.exercises), seconds, *cells, _plain(row.note)])
    part.replace(out)


def print_row(row: Row) -> None:
    """A line in the terminal, as soon as a submission is judged."""
    count = f"{row.passed}/{len(row.exercises)}" if row.exercises else "-"
    words = f"{_plain(row.submission):<40} {count:>5}  {row.seconds:4.0f} s  {row.status}"
    print(words + (f": {_plain(row.note)}" if row.note else ""), flush=True)


def _plain(text: str) -> str:
    """Nothing that a spreadsheet takes for a formula, or a terminal for a command."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return f"'{text}" if text[:1] in tuple("=+-@") else text


def _submissions(folder: Path) -> list[Path]:
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where) / name for name in files if not name.startswith(".")]
    return found


def _row(name: str, file: Path, limits: Limits, *, shut_in: bool) -> Row:
    if file.is_symlink() or not file.is_file():  # it could name the teacher's, or wait for ever
        return Row(name, "not a notebook", "no ordinary file")
    if file.stat().st_size > LARGEST:
        return Row(name, "not a notebook", f"larger than {LARGEST >> 20} MiB")
    ended = run(MODULE, file.read_bytes(), limits, shut_in=shut_in)
    return _read(name, ended)


def _read(name: str, ended: Ended) -> Row:
    """A row from the lines that the submission's process wrote; they may be anything."""
    lesson, status, note = "", "failed", ended.errors.strip()[-300:]
    exercises: dict[str, tuple[int, int]] = {}
    passed = 0
    for line in ended.said.decode("utf-8", errors="replace").splitlines():
        values = _line(line)
        lesson = str(values.get("lesson", lesson))[:2]
        if "exercise" in values:
            exercises[str(values["exercise"])] = int(values["good"]), int(values["of"])
            passed += values["passed"] is True
        if "status" in values:
            status, note = str(values["status"]), str(values.get("note", ""))
    if ended.limit:
        status, note = ended.limit, f"ended at its limit of {ended.limit}"
    return Row(name, status, note, lesson, ended.seconds, exercises, passed)


def _line(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
