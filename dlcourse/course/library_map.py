"""The map of libraries: which of them has which strategy, by what name, and where that was read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlcourse.course import catalog
from dlcourse.course.showing import say
from dlcourse.figures.tables import Table
from dlcourse.words.strings import t

NEW, NONE = "★", "–"  # a box that claim A4 leaves out; a box that is empty


def load_libraries(root: Path | None = None) -> dict[str, Any]:
    """What ``data/libraries.json`` says."""
    path = (root or catalog.course_root()) / "data" / "libraries.json"
    return json.loads(path.read_text(encoding="utf-8"))


def boxes_left_out(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(library, strategy) of every box that is filled although claim A4 does not name it."""
    return [
        (library["name"], strategy)
        for library in data["libraries"]
        for strategy in data["strategies"]
        if strategy in library["cells"] and strategy not in library["claimed"]
    ]


def library_map(lang: str | None = None) -> Table:
    """Libraries down, strategies across; says the sources below and returns the table."""
    data = load_libraries()
    left_out = boxes_left_out(data)
    rows = []
    for library in data["libraries"]:
        name = f"{library['name']} {library['version']}".strip()
        if library["status"] == "communication":
            name += "\n" + t("library.communication", lang)
        if "last_release" in library:
            name += "\n" + t("library.last", lang, date=library["last_release"])
        cells = []
        for strategy in data["strategies"]:
            text = library["cells"].get(strategy, NONE)
            star = f"{NEW} " if (library["name"], strategy) in left_out else ""
            cells.append(star + text)
        rows.append([name, *cells])
    links = [
        library["name"] + "".join(f" [[{i}]]({s})" for i, s in enumerate(library["sources"], 1))
        for library in data["libraries"]
    ]
    say(t("library.sources", lang, date=data["date"]) + " " + " · ".join(links))
    head = [t("library.name", lang)] + [t(f"library.column.{s}", lang) for s in data["strategies"]]
    return Table(head, rows, caption=t("library.caption", lang, star=NEW, count=len(left_out)))
