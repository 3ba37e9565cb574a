"""The text of the course, one file for each language: ``data/course_text/``."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LANGUAGES = {"english": "en", "korean": "ko"}
_NOT_PROSE = re.compile(r"```.*?```|\(https?://[^)]*\)|<!--.*?-->", re.DOTALL)  # drawings, links


def renew(root: Path) -> None:
    """Write what the lessons of this folder say now."""
    folder = root / "data" / "course_text"
    folder.mkdir(parents=True, exist_ok=True)
    for kind, lang in LANGUAGES.items():
        (folder / f"{kind}.txt").write_text(course_text(root, lang), encoding="utf-8")


def course_text(root: Path, lang: str) -> str:
    """What the course says in one language: its notebooks' text cells, and its tables of words."""
    notebooks = root / "notebooks"
    parts = []
    for path in sorted((notebooks / lang).glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        parts += ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    for path in [
        *sorted((notebooks / "source").rglob("*.toml")),
        *sorted((Path(__file__).parents[1] / "words").glob("*.toml")),
    ]:
        parts += _in_language(tomllib.loads(path.read_text(encoding="utf-8")), lang)
    return _NOT_PROSE.sub("", "\n\n".join(parts))


def _in_language(table: Any, lang: str) -> Iterator[str]:
    """Every text of a table of words: {"name": {"en": ..., "ko": ...}}."""
    if isinstance(table, dict):
        for name, value in table.items():
            if name == lang and isinstance(value, str):
                yield value
            else:
                yield from _in_language(value, lang)
    elif isinstance(table, list):
        for value in table:
            yield from _in_language(value, lang)
