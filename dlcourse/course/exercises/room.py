"""Read an exercise from its folder in the lesson's room, ``NN_name/exercises/WORD/``.

    check.py       NAMES, CASES and, where they differ from `Exercise`'s, NUM_RANKS, TIME_LIMIT and
                   WHERE; and the function ``check(…, rank, world_size)``
    solution.py    what ``solution(id)`` shows
    wrong_*.py     first line ``# caught by: CASE`` (or several, with commas; or ``hang``)
    texts.toml     [cases.CASE], [messages.KEY], [[hints]], each with ko and en

Beside the folders, ``common.py`` has what several checks of the lesson share, and ``texts.toml``
the texts that they share. A file that is missing or incomplete is refused with its name.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from dlcourse.course import catalog
from dlcourse.course.exercises.exercise import HANG, Exercise, Text, WrongAnswer

CAUGHT_BY = "# caught by:"


def load(folder: Path) -> Exercise:
    """The exercise in a folder; ``ValueError`` names the file in which something is missing."""
    for name in ("check.py", "solution.py", "texts.toml"):
        if not (folder / name).is_file():
            raise ValueError(f"{_shown(folder)} has no {name}")
    check = lesson_module(folder.parent, f"{folder.name}.check")
    for name in ("NAMES", "CASES", "check"):
        if not hasattr(check, name):
            raise ValueError(f"{_shown(folder / 'check.py')} does not define {name}")
    own, shared = _texts(folder / "texts.toml"), _texts(folder.parent / "texts.toml")
    cases = {**shared["cases"], **own["cases"]}
    for case in check.CASES:
        if case not in cases:
            raise ValueError(f"{_shown(folder / 'texts.toml')} has no [cases.{case}]")
    unknown = [*own["cases"].keys() - {*check.CASES}]
    if unknown:
        where, case = _shown(folder / "texts.toml"), min(unknown)
        raise ValueError(f"{where}: [cases.{case}] is none of the CASES of check.py")
    if not own["hints"]:
        raise ValueError(f"{_shown(folder / 'texts.toml')} has no [[hints]]")
    settings = {
        key: getattr(check, key.upper()) for key in _SETTINGS if hasattr(check, key.upper())
    }
    return Exercise(
        id=f"{folder.parents[1].name[:2]}.{folder.name}",
        names=tuple(check.NAMES),
        checker=check.check,
        cases={case: cases[case] for case in check.CASES},
        solution=(folder / "solution.py").read_text(encoding="utf-8"),
        wrong=_wrong_answers(folder, check.CASES),
        hints={lang: tuple(h[lang] for h in own["hints"]) for lang in catalog.LANGUAGES},
        messages={**shared["messages"], **own["messages"]},
        **settings,
    )


_SETTINGS = ("num_ranks", "time_limit", "where")


def lesson_module(folder: Path, name: str) -> ModuleType:
    """A module of a lesson's ``exercises`` folder: ``"common"`` or ``"mean.check"``.

    The folder is a package of its own, so that ``from ..common import …`` finds the lesson's. What
    it defines is pickled by value, because ranks could not import it.
    """
    package = f"exercises_{folder.parent.name}_{zlib.crc32(str(folder.resolve()).encode()):08x}"
    if package not in sys.modules:
        made = ModuleType(package)
        made.__path__ = [str(folder)]
        sys.modules[package] = made
        cloudpickle.register_pickle_by_value(made)
    return importlib.import_module(f"{package}.{name}")


def _wrong_answers(folder: Path, cases: tuple[str, ...]) -> tuple[WrongAnswer, ...]:
    found = []
    for path in sorted(folder.glob("wrong_*.py")):
        source = path.read_text(encoding="utf-8")
        first = source.partition("\n")[0]
        if not first.startswith(CAUGHT_BY):
            raise ValueError(f"{_shown(path)}: the first line must be '{CAUGHT_BY} CASE'")
        caught_by = tuple(word.strip() for word in first.removeprefix(CAUGHT_BY).split(","))
        for case in caught_by:
            if case not in (*cases, HANG):
                choices = ", ".join((*cases, HANG))
                raise ValueError(f"{_shown(path)}: case {case!r} is unknown; choose from {choices}")
        found.append(WrongAnswer(path.stem.removeprefix("wrong_"), caught_by, source))
    if not found:
        raise ValueError(f"{_shown(folder)} has no wrong_*.py: write a wrong answer")
    return tuple(found)


def _texts(path: Path) -> dict[str, Any]:
    """``{"cases": …, "messages": …, "hints": […]}`` of a file; nothing where there is no file."""
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{_shown(path)} is no TOML: {error}") from None
    unknown = read.keys() - {"cases", "messages", "hints"}
    if unknown:
        raise ValueError(f"{_shown(path)}: [{min(unknown)}] is none of cases, messages, hints")
    texts = {"cases": read.get("cases", {}), "messages": read.get("messages", {})}
    for kind, entries in texts.items():
        for key, text in entries.items():
            _require_languages(path, f"[{kind}.{key}]", text)
    for number, text in enumerate(read.get("hints", []), start=1):
        _require_languages(path, f"hint {number}", text)
    return {**texts, "hints": read.get("hints", [])}


def _require_languages(path: Path, name: str, text: Text) -> None:
    for lang in catalog.LANGUAGES:
        said = text.get(lang) if isinstance(text, Mapping) else None
        if not isinstance(said, str) or not said.strip():
            raise ValueError(f"{_shown(path)}: {name} has no {lang}")
    for key in text.keys() - {*catalog.LANGUAGES}:
        raise ValueError(f"{_shown(path)}: {name} has {key}, which is no language of the course")


def _shown(path: Path) -> str:
    """From the lesson's folder on."""
    parts = path.parts
    return (
        "/".join(parts[parts.index("exercises", -4) - 1 :]) if "exercises" in parts else str(path)
    )
