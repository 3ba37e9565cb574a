"""The form of a lesson: a core that one sitting carries, and "Deeper" for what goes further.

A lesson declares it in its first text cell, ``form="core"``; then the limits below are enforced.
What counts is what a reader meets before the heading "Deeper": text cells, code cells whose input
is shown, and hidden ones that end with something to see.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from dlcourse.course.rules import count_words, without_magics
from dlcourse.course.source import Block, Lesson, Problem

DEEPER = {"en": "## Deeper", "ko": "## 더 깊이"}
EXERCISES = "## Exercises"
MAX_CELLS = 55
MAX_LINES = 199
MAX_CELL_LINES = 18
PER_MINUTE = {"en": 180, "ko": 130}  # English words, Korean eojeol
LINES_PER_MINUTE = 12
RUNS_MINUTES = 5  # to run the cells, and to look at what they gave
TOLERANCE_MINUTES = 5  # between what the lesson says and what is counted
_SAID = {
    "en": re.compile(r"[Rr]eading (\d+) min(?:utes)? \+ exercises (\d+) min"),
    "ko": re.compile(r"읽기 (\d+)분 \+ 연습 (\d+)분"),
}
_EACH = {"en": re.compile(r"\((\d+) minutes\)"), "ko": re.compile(r"\((\d+)분\)")}


@dataclass(frozen=True)
class Counts:
    """What the core of a lesson asks of a reader.

    Attributes:
        cells: that a reader sees.
        lines: of shown code.
        longest: lines of the longest of these cells.
        reading: minutes, by language, the exercises not counted.
        exercises: minutes that the exercises name.
    """

    cells: int
    lines: int
    longest: int
    reading: dict[str, int]
    exercises: dict[str, int]


def is_hidden(block: Block) -> bool:
    """Whether a code cell's input is folded away."""
    return bool(block.metadata.get("hidden"))


def is_quiz(block: Block) -> bool:
    """Whether this cell asks the questions at the core's end; it counts as no cell of the core."""
    return block.kind == "code" and block.code.strip() == "quiz()"


def is_deeper(block: Block) -> bool:
    """Whether this is the heading behind which a lesson goes further."""
    return block.kind == "text" and block.text.get("en", "").split("\n")[0] == DEEPER["en"]


def declares_form(lesson: Lesson) -> bool:
    """Whether the lesson wants to be held to the form."""
    return any(block.metadata.get("form") == "core" for block in lesson.blocks[:1])


def core_of(lesson: Lesson) -> list[Block]:
    """The blocks before "Deeper"."""
    deeper = [i for i, block in enumerate(lesson.blocks) if is_deeper(block)]
    return lesson.blocks[: deeper[0]] if deeper else lesson.blocks


def count(lesson: Lesson) -> Counts:
    """The numbers of a lesson whose source cells are filled."""
    core = [block for block in core_of(lesson) if not is_quiz(block)]
    seen = [b for b in core if b.kind == "text" or not is_hidden(b) or _shows(b)]
    shown = [_lines(b) for b in core if b.kind == "code" and not is_hidden(b)]
    exercises = _exercises(core)
    text = [b for b in core if b.kind == "text" and b not in exercises]
    code = sum(_lines(b) for b in core if b.kind == "code" and not is_hidden(b))
    code -= sum(_lines(b) for b in exercises if b.kind == "code")
    reading, minutes = {}, {}
    for lang, per_minute in PER_MINUTE.items():
        words = sum(count_words(block.text.get(lang, "")) for block in text)
        reading[lang] = round(words / per_minute + code / LINES_PER_MINUTE + RUNS_MINUTES)
        texts = (block.text.get(lang, "") for block in exercises)
        minutes[lang] = sum(int(n) for part in texts for n in _EACH[lang].findall(part))
    return Counts(len(seen), sum(shown), max(shown, default=0), reading, minutes)


def check_form(lesson: Lesson, shown: Path) -> list[Problem]:
    """Where a lesson that declares the form does not keep it."""
    if not declares_form(lesson):
        return []
    found, found_in = count(lesson), core_of(lesson)
    problems = []

    def problem(line: int, message: str) -> None:
        problems.append(Problem(shown, line, message))

    if found.cells > MAX_CELLS:
        problem(1, f"core of {found.cells} visible cells, at most {MAX_CELLS}: {_MOVE}")
    if found.lines > MAX_LINES:
        problem(1, f"core of {found.lines} visible lines of code, at most {MAX_LINES}: {_MOVE}")
    for block in core_of(lesson):
        if block.kind == "code" and not is_hidden(block) and _lines(block) > MAX_CELL_LINES:
            message = f"core cell of {_lines(block)} lines, at most {MAX_CELL_LINES}: {_MOVE}"
            problem(block.line, message)
    problems += _check_deeper(lesson, shown)
    first = lesson.blocks[0]
    for lang, pattern in _SAID.items():
        at = first.lines.get(lang, 1)
        said = pattern.search(first.text.get(lang, ""))
        want = f"{found.reading[lang]} + {found.exercises[lang]}"
        if not said:
            problem(at, f"no minutes at the top in {lang}: counted are {want}; {_SAY[lang]}")
            continue
        reading, exercises = map(int, said.groups())
        off = abs(reading - found.reading[lang])
        if off > TOLERANCE_MINUTES or exercises != found.exercises[lang]:
            none = f'; no text cell begins with "{EXERCISES}"' if not _exercises(found_in) else ""
            problem(at, f"minutes at the top, {reading} + {exercises}: counted are {want}{none}")
    return problems


_MOVE = 'hide it (hidden=true), make it one named call, or move it behind "## Deeper"'
_SAY = {
    "en": 'write "reading 40 min + exercises 45 min"',
    "ko": 'write "읽기 40분 + 연습 45분"',
}


def _check_deeper(lesson: Lesson, shown: Path) -> list[Problem]:
    """One heading in both languages, and none of its rank after it: all below it is folded."""
    places = [i for i, block in enumerate(lesson.blocks) if is_deeper(block)]
    if len(places) != 1:
        message = f'{len(places)} headings "{DEEPER["en"]}": give one, at the end'
        return [Problem(shown, 1, message)]
    heading = lesson.blocks[places[0]]
    problems = []
    if heading.text.get("ko", "").split("\n")[0] != DEEPER["ko"]:
        message = f'the heading is "{DEEPER["ko"]}" in Korean'
        problems.append(Problem(shown, heading.lines.get("ko", heading.line), message))
    for block in lesson.blocks[places[0] :]:
        for lang, text in block.text.items():
            text = text.partition("\n")[2] if block is heading else text
            if re.search(r"^##? ", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M):
                message = 'a heading after "Deeper" would end what it folds: use ###'
                problems.append(Problem(shown, block.lines[lang], message))
    return problems


def _exercises(core: list[Block]) -> list[Block]:
    """From the exercises' heading to the next one of its rank."""
    found: list[Block] = []
    for block in core:
        first = block.text.get("en", "")
        if first.startswith(EXERCISES) or (found and not first.startswith("## ")):
            found.append(block)
        elif found:
            break
    return found


def _lines(block: Block) -> int:
    return sum(bool(line.strip()) for line in block.code.splitlines())


def _shows(block: Block) -> bool:
    """Whether the cell ends with an expression, whose value a reader sees."""
    body = ast.parse(without_magics(block.code)).body
    return bool(body) and isinstance(body[-1], ast.Expr)


def table(lessons: list[Lesson]) -> str:
    """Numbers of each lesson, one a line."""
    rows: list[tuple[str, ...]]
    rows = [("lesson", "form", "cells", "lines", "longest", "min en", "min ko", "exercises")]
    for lesson in lessons:
        found = count(lesson)
        declared = "core" if declares_form(lesson) else "-"
        numbers = (found.cells, found.lines, found.longest, *found.reading.values())
        exercises = found.exercises["en"]
        rows.append((lesson.name, declared, *map(str, (*numbers, exercises))))
    return "\n".join(f"{name:<24}" + "".join(f"{x:>10}" for x in rest) for name, *rest in rows)
