"""Ten questions at the end of a lesson's core, to see for oneself what has stayed.

They are data, in the lesson's room, ``quiz.toml``: for each question its text, three or four
options, the position of the right one, the reason, and the heading of the core under which the
answer is found. `quiz()` asks them; ``questions_check.py`` says what is wrong with them.
"""

from __future__ import annotations

import html
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcourse.course import catalog
from dlcourse.course.showing import Shown, display
from dlcourse.panel.widget import front_end_present, widgets_installed
from dlcourse.words.strings import language, lesson_words, t

FILE = "quiz.toml"
OPTIONS = (3, 4)
TEXTS = ("question", "why", "where")
_LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question with its texts by language; ``answer`` counts from 0."""

    question: dict[str, str]
    options: dict[str, list[str]]
    answer: int
    why: dict[str, str]
    where: dict[str, str]

    def in_language(self, lang: str) -> dict[str, Any]:
        """What the widget shows of it."""
        texts = {name: getattr(self, name)[lang] for name in (*TEXTS, "options")}
        return texts | {"answer": self.answer}


class Quiz(Shown):
    """Questions that were shown; made by `quiz`."""

    def __init__(self, questions: list[Question]) -> None:
        self.questions = questions


def quiz() -> Quiz:
    """Ask the questions of the lesson that runs.

    In a front end one after the other, by mouse or keyboard, each answered as soon as it is
    checked; nothing is sent anywhere, not even to the kernel. Elsewhere all of them, and folded
    below them the answers.

    Raises:
        ValueError: no lesson has been started, or its room has no questions.
    """
    words = lesson_words()
    if words is None:
        raise ValueError("quiz() asks of the lesson that runs: call lesson(name=...) first")
    path = words.parent / FILE
    questions = read_quiz(path)
    if not questions:
        raise ValueError(f"{path} has no [[questions]]: write ten, or leave quiz() out")
    still = {"text/plain": _as_text(questions), "text/html": _as_html(questions)}
    if front_end_present() and widgets_installed():
        from dlcourse.course.questions_widget import view_of

        still |= view_of([question.in_language(language()) for question in questions])
    display(still)
    return Quiz(questions)


def read_quiz(path: Path) -> list[Question]:
    """The questions of a file; none where there is no file.

    Raises:
        ValueError: not TOML, or a question without what it needs; the message names it.
    """
    tables = _content(path).get("questions", [])
    if not isinstance(tables, list):
        raise ValueError("questions is one table: each begins with [[questions]]")
    return [_question(table, number) for number, table in enumerate(tables, 1)]


def is_draft(path: Path) -> bool:
    """Whether it says ``draft = true``, as a new lesson's does: it may have fewer than ten."""
    return _content(path).get("draft") is True


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"not TOML: {error}") from None


def _question(table: dict[str, Any], number: int) -> Question:
    def fault(said: str) -> ValueError:
        return ValueError(f"question {number}: {said}")

    for name in (*TEXTS, "options"):
        texts = table.get(name)
        if not isinstance(texts, dict) or sorted(texts) != sorted(catalog.LANGUAGES):
            raise fault(f"[questions.{name}] needs ko and en")
        for lang, given in texts.items():
            for text in given if isinstance(given, list) else [given]:
                if not isinstance(text, str) or not text.strip():
                    raise fault(f"{name}.{lang} holds {text!r}: give a text")
            if isinstance(given, list) != (name == "options"):
                raise fault(f"{name}.{lang} is {given!r}: options are lists, all else is a text")
    options, answer = table["options"], table.get("answer")
    if len({len(each) for each in options.values()}) > 1 or len(options["en"]) not in OPTIONS:
        counts = " and ".join(f"{len(options[lang])} in {lang}" for lang in catalog.LANGUAGES)
        raise fault(f"options: {counts}; give 3 or 4, as many in both languages")
    if type(answer) is not int or not 1 <= answer <= len(options["en"]):
        raise fault(
            f"answer={answer!r}: give the right option's position, 1 to {len(options['en'])}"
        )
    return Question(**{name: table[name] for name in (*TEXTS, "options")}, answer=answer - 1)


def _as_text(questions: list[Question]) -> str:
    lang = language()
    lines = [t("quiz.title", n=len(questions))]
    for number, question in enumerate(questions, 1):
        lines += ["", f"{number}. {question.question[lang]}"]
        lines += [f"   {_LETTERS[i]}) {text}" for i, text in enumerate(question.options[lang])]
    lines += ["", t("quiz.answers")]
    for number, question in enumerate(questions, 1):
        lines.append(f"{number}. {_LETTERS[question.answer]}) {question.why[lang]}")
    return "\n".join(lines)


def _as_html(questions: list[Question]) -> str:
    """Where no widget is drawn, such as on a web page: the reader opens the answers."""
    lang = language()
    asked, answered = [], []
    for question in questions:
        options = "".join(f"<li>{_code(text)}</li>" for text in question.options[lang])
        asked.append(f'<li>{_code(question.question[lang])}<ol type="A">{options}</ol></li>')
        letter, where = _LETTERS[question.answer], t("quiz.where", heading=question.where[lang])
        answered.append(f"<li>{letter}) {_code(question.why[lang])} <em>{_code(where)}</em></li>")
    title = html.escape(t("quiz.title", n=len(questions)))
    answers = f"<summary>{html.escape(t('quiz.answers'))}</summary><ol>{''.join(answered)}</ol>"
    return f"<p><strong>{title}</strong></p><ol>{''.join(asked)}</ol><details>{answers}</details>"


def _code(text: str) -> str:
    """What stands between backquotes, as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
