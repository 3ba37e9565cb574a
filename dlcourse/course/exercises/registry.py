"""Where to find the exercise with a given id; one is read when it is asked for."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from dlcourse.course import catalog
from dlcourse.course.exercises.exercise import Exercise
from dlcourse.course.exercises.room import lesson_module, load


def find_exercise(id: str) -> Exercise:
    """The exercise with this id, or ``ValueError`` with those of the same lesson.

    Raises:
        ValueError: also for an exercise whose files are incomplete; names the file.
    """
    folders = {_id(folder): folder for folder in _folders()}
    if not isinstance(id, str) or id not in folders:
        same = [known for known in folders if known[:2] == str(id)[:2]]
        choices = ", ".join(same or folders) or "none is written yet"
        raise ValueError(f"exercise {id!r} is unknown; choose one of: {choices}")
    return _exercise(folders[id])


def lesson_exercises(lesson: str) -> list[Exercise]:
    """The exercises of a lesson, given by its two digits, in the lesson's order."""
    return [_exercise(folder) for folder in _folders() if _id(folder)[:2] == lesson]


def all_exercises() -> list[Exercise]:
    """All exercises of all lessons, in order."""
    return [_exercise(folder) for folder in _folders()]


def exercise_ids() -> list[str]:
    """The ids of all exercises of all lessons, in order; none of them is read."""
    return [_id(folder) for folder in _folders()]


def common_module(lesson: str) -> ModuleType:
    """``common.py`` of a lesson, given by its two digits."""
    return lesson_module(next(f.parent for f in _folders() if _id(f)[:2] == lesson), "common")


_loaded: dict[Path, Exercise] = {}


def _exercise(folder: Path) -> Exercise:
    if folder not in _loaded:
        _loaded[folder] = load(folder)
    return _loaded[folder]


def _id(folder: Path) -> str:
    return f"{folder.parents[1].name[:2]}.{folder.name}"


def _folders() -> list[Path]:
    """Folders of exercises: the course's, and those of a tree that ``DLCOURSE_ROOT`` names."""
    roots = dict.fromkeys((catalog.own_root(), catalog.course_root()))
    rooms = [source.parent for root in roots for source in catalog.sources(root)]
    folders = [folder for room in rooms for folder in _in_order(room)]
    return [
        *{_id(folder): folder for folder in folders}.values()
    ]  # the tree's, where both have one


def _in_order(room: Path) -> list[Path]:
    """A lesson's exercises as its cells have them; those that no cell has come last."""
    folders = [p for p in sorted((room / "exercises").glob("[a-z]*")) if p.is_dir()]
    cells = re.findall(r'exercise="\d\d\.(\w+)"', (room / "lesson.py").read_text(encoding="utf-8"))
    place = {word: number for number, word in enumerate(cells)}
    return sorted(folders, key=lambda folder: place.get(folder.name, len(place)))
