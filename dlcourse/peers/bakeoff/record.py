"""What was found elsewhere: the recorded bake-off, and who maintains each library."""

from __future__ import annotations

import json
from typing import Any

from dlcourse.corpus import course_folder
from dlcourse.peers.bakeoff.contestants import CONTESTANTS


def recorded_bakeoff() -> dict[str, Any]:
    """What ``dlcourse bench bakeoff --record data/bakeoff.json`` wrote.

    Returns:
        "machine", "date", "versions", "command", "ranks", and "rows" as `run_bakeoff` gives them,
        but for "lines", which are counted in the code of today.

    Raises:
        ValueError: there is no record.
    """
    path = course_folder() / "data" / "bakeoff.json"
    if not path.is_file():
        raise ValueError(f"{path} is not there: make it by dlcourse bench bakeoff --record {path}")
    record = json.loads(path.read_text(encoding="utf-8"))
    for row in record["rows"]:
        row["lines"] = CONTESTANTS[row["name"]].lines()
    return record


def maintenance() -> dict[str, dict[str, str]]:
    """By library, as in ``data/libraries.json``.

    Returns:
        "by": who maintains it, read at "by_source". "release", "released": its newest version and
        the month of it, read at "source". "read": the day on which both were read.
    """
    path = course_folder() / "data" / "libraries.json"
    found = json.loads(path.read_text(encoding="utf-8"))["maintenance"]
    return {
        name: {**fact, "read": found["date"]}
        for name, fact in found.items()
        if isinstance(fact, dict)
    }
