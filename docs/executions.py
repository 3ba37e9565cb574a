"""What a lesson's cells gave when it last ran whole, kept in `docs/executed/` for the site.

Only outputs are kept, by the cell's id and its code. Text comes from the notebook of today, and an
output whose cell has other code today is not shown: it would be another cell's.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat

from dlcourse.course import build, catalog
from dlcourse.course.run import run_lesson

KEPT = Path(__file__).parent / "executed"


def path_of(name: str, lang: str) -> Path:
    return KEPT / f"{name}.{lang}.json"


def execute(name: str, lang: str) -> Path:
    """Run a built lesson headless and keep what its cells gave.

    Raises:
        RuntimeError: a cell failed; what was kept before stays.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = run_lesson(name, lang=lang, out=Path(folder), progress=False)
        if not run.passed:
            raise RuntimeError(f"{name} ({lang}) failed: {run.error}")
        return keep(run.notebook)


def keep(executed: Path) -> Path:
    """Keep the outputs of a notebook that `dlcourse run --out` has left, `NN_name.ko.ipynb`.

    Raises:
        ValueError: a cell of it has failed; what was kept before stays.
    """
    name, lang = executed.name.split(".")[:2]
    notebook = nbformat.read(executed, as_version=4)
    report = json.loads(executed.with_suffix(".json").read_text(encoding="utf-8"))
    if not report["passed"]:
        raise ValueError(f"{executed} has a cell that failed: {report['error']}")
    kept = {
        "machine": _machine(report["machine"]),
        "date": report["date"][:10],
        "cells": {
            cell.id: {"code": cell.source, "outputs": build.clean_outputs(cell.outputs, 1)}
            for cell in notebook.cells
            if cell.cell_type == "code" and cell.outputs
        },
    }
    text = json.dumps(kept, ensure_ascii=False, indent=0)
    path = path_of(name, lang)
    KEPT.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path


def _machine(found: dict[str, Any]) -> str:
    """In words that need no translation: cores, memory, GPUs."""
    memory = f"{found['memory_bytes'] / 2**30:.0f} GiB"
    return ", ".join([f"{found['cores']} CPU", memory, *map(str, found["gpus"])])


def read(name: str, lang: str) -> dict[str, Any]:
    """Machine, date, seconds, and cells by id.

    Raises:
        ValueError: the lesson has no kept run in this language; says how to make one.
    """
    path = path_of(name, lang)
    if not path.exists():
        raise ValueError(
            f"{name} ({lang}) has no kept run: `make site ARGS='--execute {name[:2]}'` makes it"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def changed(notebook: Any, kept: dict[str, Any]) -> list[str]:
    """Ids of the cells with outputs whose code is another one today, or that are gone."""
    code = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}
    return [id_ for id_, cell in kept["cells"].items() if code.get(id_) != cell["code"]]


def lessons() -> list[str]:
    return catalog.written_lessons(catalog.course_root())
