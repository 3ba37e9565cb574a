"""What a lesson's room holds beside its notebook, and whether the lesson's cells fit it.

The cells name exercises, predictions and words by texts, `check("09.ddp")`, `predict("09.peak")`,
`t(".title")`, that no import would miss. `dlcourse build --check` looks them up.
"""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator, Mapping
from pathlib import Path

from dlcourse.course import catalog
from dlcourse.course.exercises.room import load
from dlcourse.course.form import without_magics
from dlcourse.course.predictions import Asked, read_predictions
from dlcourse.course.questions_check import check_quiz
from dlcourse.course.source import Lesson, Problem
from dlcourse.words.strings import read_words

_OF_EXERCISES = ("check", "hint", "solution")

Call = tuple[int, str, str, bool]  # line, function, its first argument, whether it has others
Words = Mapping[str, Mapping[str, str]]  # key, language, text


def check_room(root: Path, lesson: Lesson) -> list[Problem]:
    """What is missing or wrong in the room, and what the cells name that is not there."""
    room = catalog.room(root, lesson.name)
    shown = room.relative_to(root)
    calls = list(_calls(lesson))
    problems = [*_check_exercises(lesson, room, shown, calls), *check_quiz(lesson, room, shown)]
    read_words.cache_clear()  # another state of the file may have been read before
    try:
        words = read_words(room / "words.toml")
    except ValueError as error:
        said = str(error).removeprefix(str(room / "words.toml")).strip(": ")
        return [*problems, Problem(shown / "words.toml", 0, said)]
    problems += _check_words(words, shown, calls)
    try:
        asked = read_predictions(room / "predictions.py")
    except Exception as error:
        return [*problems, Problem(shown / "predictions.py", 0, f"{type(error).__name__}: {error}")]
    return [*problems, *_check_predictions(asked, words, shown, calls)]


def _calls(lesson: Lesson) -> Iterator[Call]:
    """The calls in a lesson's cells whose first argument is a text."""
    for block in lesson.blocks:
        if block.kind != "code":
            continue
        try:
            tree = ast.parse(without_magics(block.code))
        except SyntaxError:
            continue  # a problem of its own
        for node in ast.walk(tree):
            match node:
                case ast.Call(ast.Name(name), [ast.Constant(str(text)), *more], keywords):
                    yield block.line, name, text, bool(more or keywords)


def _check_exercises(
    lesson: Lesson, room: Path, shown: Path, calls: list[Call]
) -> Iterator[Problem]:
    ids = set()
    for folder in sorted((room / "exercises").glob("[a-z]*/")):
        ids.add(id := f"{lesson.name[:2]}.{folder.name}")
        try:
            load(folder)
        except (ValueError, SyntaxError) as error:
            yield Problem(shown / "exercises" / folder.name, 0, str(error))
        if ("check", id) not in {(name, text) for _, name, text, _ in calls}:
            yield Problem(shown / "lesson.py", 0, f'no cell has check("{id}")')
    cells = {b.metadata["exercise"]: b.line for b in lesson.blocks if "exercise" in b.metadata}
    for id in sorted(ids - cells.keys()):
        yield Problem(shown / "lesson.py", 0, f'no cell has exercise="{id}"')
    named = [(line, text) for line, name, text, _ in calls if name in _OF_EXERCISES]
    for line, id in [*((line, id) for id, line in cells.items()), *named]:
        if id not in ids:
            path = f"exercises/{id.partition('.')[2]}"
            yield Problem(shown / "lesson.py", line, f"exercise {id!r}: the room has no {path}")


def _check_words(words: Words, shown: Path, calls: list[Call]) -> Iterator[Problem]:
    for name in ("title", "question"):
        if words and name not in words:
            yield Problem(shown / "words.toml", 0, f"[{name}] is missing")
    for name, texts in words.items():
        fields = [{f for _, f, _, _ in string.Formatter().parse(t) if f} for t in texts.values()]
        if fields[0] != fields[1]:
            yield Problem(shown / "words.toml", 0, f"[{name}]: the languages' fields differ")
    for line, function, key, _ in calls:
        if function == "t" and key.startswith(".") and key[1:] not in words:
            yield Problem(shown / "lesson.py", line, f"t({key!r}): words.toml has no [{key[1:]}]")


def _check_predictions(
    asked: Mapping[str, Asked], words: Words, shown: Path, calls: list[Call]
) -> Iterator[Problem]:
    predicted = {text for _, name, text, _ in calls if name == "predict"}
    for line, name, id, more in calls:
        if name == "predict" and not more and id not in asked:
            yield Problem(shown / "lesson.py", line, f"predict({id!r}): predictions.py has no {id}")
        if name == "compare" and id not in predicted:
            yield Problem(shown / "lesson.py", line, f"compare({id!r}): no cell predicts it")
    for id in sorted(asked.keys() - predicted):
        yield Problem(shown / "predictions.py", 0, f'no cell has predict("{id}")')
    for id, prediction in asked.items():
        if prediction.reason not in words:
            said = f"{id}: words.toml has no [{prediction.reason}], the reason"
            yield Problem(shown / "predictions.py", 0, said)
