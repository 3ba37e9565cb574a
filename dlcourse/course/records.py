"""Records in ``data/``: runs of a command of the project, and figures that others published."""

from __future__ import annotations

import json
from typing import Any

from dlcourse.course import catalog


def read_record(name: str) -> dict[str, Any]:
    """What ``data/NAME.json`` holds.

    Raises:
        ValueError: there is no such record; says which there are.
    """
    folder = catalog.course_root() / "data"
    path = folder / f"{name}.json"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
        raise ValueError(f"record {name!r} is not in {folder}: there are {there}")
    return json.loads(path.read_text(encoding="utf-8"))
