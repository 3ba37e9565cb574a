"""What an exercise is, and where to find the one with a given id."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from dlcourse.course import catalog

Text = Mapping[str, str]  # {"ko": …, "en": …}


@dataclass(frozen=True)
class Exercise:
    """One exercise of a lesson.

    Args:
        id: lesson number and a word, ``"03.mean"``; the stub's cell carries it as ``exercise=``.
        names: functions or classes that the learner defines; the checker gets them in this order.
        checker: ``check(fn, rank, world_size) -> list of findings``, run in every rank of a fresh
            pool. Its findings name ``cases``.
        cases: words for each case, in both languages, in the order in which they are shown.
        solution: source that passes; shown by ``solution(id)``.
        wrong: sources that look right and are not; the suite proves that each is caught.
        hints: by language, from a nudge to nearly the answer.
        messages: words for findings of the exercise's own keys, with fields in braces.
        num_ranks: size of the fresh pool.
        time_limit: seconds after which the check gives up.
        where: "ranks" if the stub is a ``%%ranks`` cell, "kernel" if it is an ordinary one.
    """

    id: str
    names: tuple[str, ...]
    checker: Callable[..., Sequence[Mapping[str, Any]]]
    cases: Mapping[str, Text]
    solution: str
    wrong: tuple[str, ...]
    hints: Mapping[str, Sequence[str]]
    messages: Mapping[str, Text] = field(default_factory=dict)
    num_ranks: int = 4
    time_limit: float = 20.0
    where: str = "ranks"

    def __post_init__(self) -> None:
        """Refuse an exercise that a learner in one of the languages could not use."""
        number, _, word = self.id.partition(".")
        if not (number.isdecimal() and len(number) == 2 and word.isidentifier()):
            raise ValueError(f"id={self.id!r}: give two digits, a dot and a word, as 03.mean")
        if self.where not in ("ranks", "kernel"):
            raise ValueError(f"where={self.where!r} of {self.id}: give ranks or kernel")
        texts = {**self.cases, **self.messages, "hints": self.hints}
        for name, text in texts.items():
            if set(text) != set(catalog.LANGUAGES):
                raise ValueError(f"{name!r} of {self.id} must be given in ko and in en")
        if not self.cases or not self.names or not self.wrong:
            raise ValueError(f"{self.id} needs names, cases and at least one wrong answer")
        if len({len(hints) for hints in self.hints.values()}) != 1 or not self.hints["en"]:
            raise ValueError(f"{self.id} needs hints, as many in ko as in en")

    @property
    def lesson(self) -> str:
        """Two digits of the lesson it belongs to."""
        return self.id[:2]


def find_exercise(id: str) -> Exercise:
    """The exercise with this id, or ``ValueError`` with those of the same lesson."""
    lesson = str(id)[:2]
    exercises = {e.id: e for e in lesson_exercises(lesson)}
    if id not in exercises:
        known = exercises or {e.id: e for e in all_exercises()}
        choices = ", ".join(known) if known else "none is written yet"
        raise ValueError(f"exercise {id!r} is unknown; choose one of: {choices}")
    return exercises[id]


def lesson_exercises(lesson: str) -> list[Exercise]:
    """The exercises of a lesson, given by its two digits, in order."""
    found: list[Exercise] = []
    for path in _files():
        if path.stem.startswith(f"lesson_{lesson}_"):
            found += _module(path).EXERCISES
    return found


def all_exercises() -> list[Exercise]:
    """All exercises of all lessons, in order."""
    return [exercise for path in _files() for exercise in _module(path).EXERCISES]


_loaded: dict[Path, ModuleType] = {}


def _files() -> list[Path]:
    """Exercise files: the course's, and those of a tree that ``DLCOURSE_ROOT`` names."""
    folders = [Path(__file__).parent]
    if os.environ.get("DLCOURSE_ROOT"):
        folders.append(Path(os.environ["DLCOURSE_ROOT"]) / "exercises")
    return [path for folder in folders for path in sorted(folder.glob("lesson_*.py"))]


def _module(path: Path) -> ModuleType:
    if path.parent == Path(__file__).parent:
        return importlib.import_module(f"{__package__}.{path.stem}")
    # Not importable by name in a rank, and so pickled by value with its checkers.
    if path not in _loaded:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _loaded[path] = module
    return _loaded[path]
