"""What is wrong with the questions of a lesson: `dlcourse build --check` names it.

Nobody who has not read the lesson is to know an answer by where it stands or how long it is, and
whoever has read the core has met every answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dlcourse.course import catalog
from dlcourse.course.form import core_of, is_quiz
from dlcourse.course.questions import FILE, Question, is_draft, read_quiz
from dlcourse.course.rules import has_hangul
from dlcourse.course.source import Block, Lesson, Problem

QUESTIONS = 10
AT_MOST = QUESTIONS // 2  # right answers at one position, or longer than all others


def check_quiz(lesson: Lesson, room: Path, shown: Path) -> list[Problem]:
    """What is wrong with a lesson's questions, and with the place where they are asked."""
    path = shown / FILE
    try:
        questions = read_quiz(room / FILE)
    except ValueError as error:
        return [Problem(path, 0, str(error))]
    asked = [block for block in lesson.blocks if is_quiz(block)]
    if not asked:
        said = f"{FILE} is there, and no cell is `quiz()`: make it the core's last cell"
        return [Problem(shown / "lesson.py", 0, said)] if questions else []
    if not questions:
        said = f"quiz() without questions: write {FILE} (see notebooks/source/README.md)"
        return [Problem(shown / "lesson.py", asked[0].line, said)]
    problems = []
    if len(asked) > 1 or asked[0] is not core_of(lesson)[-1]:
        said = 'quiz() is the last cell of the core, once, just before "## Deeper"'
        problems.append(Problem(shown / "lesson.py", asked[0].line, said))
    faults = [*_faults(questions), *_places(questions, lesson)]
    if len(questions) != QUESTIONS and not is_draft(room / FILE):
        faults.append(f"{len(questions)} questions: write {QUESTIONS}")
    return [*problems, *(Problem(path, 0, fault) for fault in faults)]


def _faults(questions: list[Question]) -> Iterator[str]:
    """What anybody could see who has not read the lesson."""
    for position, times in Counter(q.answer + 1 for q in questions).items():
        if times > AT_MOST:
            yield f"option {position} is the right one {times} times, at most {AT_MOST}: mix them"
    for lang in catalog.LANGUAGES:
        longest = [q for q in questions if _is_longest(q.options[lang], q.answer)]
        if len(longest) > AT_MOST:
            said = f"the right option is the longest {len(longest)} times in {lang}"
            yield f"{said}, at most {AT_MOST}: who has read nothing would choose it"
        same = [text for text, n in Counter(q.question[lang] for q in questions).items() if n > 1]
        yield from (f"asked twice: {text!r}" for text in same)
    for number, question in enumerate(questions, 1):
        texts = question.in_language("en")
        english = [texts["question"], texts["why"], texts["where"], *texts["options"]]
        if any(map(has_hangul, english)):
            yield f"question {number}: Hangul in the English"
        if not (has_hangul(question.question["ko"]) and has_hangul(question.why["ko"])):
            yield f"question {number}: no Hangul in the Korean: translate it"
        for lang, options in question.options.items():
            if len(set(options)) < len(options):
                yield f"question {number}: two options are the same in {lang}"


def _is_longest(options: list[str], answer: int) -> bool:
    """Whether the right one stands out by its length."""
    rest = [len(text) for i, text in enumerate(options) if i != answer]
    return len(options[answer]) > max(rest)


def _places(questions: list[Question], lesson: Lesson) -> Iterator[str]:
    """Headings that the core does not have, or not as a pair."""
    headings = dict(pair for block in core_of(lesson) for pair in _headings(block))
    for number, question in enumerate(questions, 1):
        english, korean = question.where["en"], question.where["ko"]
        if english not in headings:
            there = "; ".join(headings)
            yield f"question {number}: the core has no heading {english!r}; it has: {there}"
        elif korean != headings[english]:
            pair = headings[english]
            yield f"question {number}: {english!r} is {pair!r} in Korean, not {korean!r}"


def _headings(block: Block) -> Iterator[tuple[str, str]]:
    """The headings of a text block, English and Korean."""
    found = []
    for lang in ("en", "ko"):
        text = re.sub(r"^```.*?^```", "", block.text.get(lang, ""), flags=re.M | re.S)
        found.append(re.findall(r"^#+ +(.+?)\s*$", text, flags=re.M))
    yield from zip(*found, strict=False)
