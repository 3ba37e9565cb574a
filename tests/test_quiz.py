"""The ten questions at a lesson's end: asked where there is a page and where there is none, and
what is wrong with them is named."""

from __future__ import annotations

import re
import shutil

import pytest

from dlcourse import quiz
from dlcourse.cli import main
from dlcourse.course import build, catalog, questions
from dlcourse.course.form import count
from dlcourse.course.questions import is_draft, read_quiz
from dlcourse.course.questions_check import check_quiz
from dlcourse.course.source import read_lesson
from dlcourse.words.strings import set_language

ROOT = catalog.own_root()
ROOM = catalog.room(ROOT, "09_accumulation")
FILES = sorted((ROOT / "notebooks" / "source").glob("*/quiz.toml"))


@pytest.fixture
def lesson_09(monkeypatch):
    monkeypatch.setenv("DLCOURSE_WORDS", str(ROOM / "words.toml"))  # as lesson(name=...) does


@pytest.fixture
def room(tmp_path):
    """A copy of lesson 09's source and questions."""
    room = tmp_path / "09_accumulation"
    room.mkdir()
    for name in ("lesson.py", "quiz.toml"):
        shutil.copy(ROOM / name, room)
    return room


def said(room) -> str:
    lesson = read_lesson(room / "lesson.py")
    return "\n".join(map(str, check_quiz(lesson, room, room)))


def edit(file, old: str, new: str, times: int = 1) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, times), encoding="utf-8")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.parent.name)
def test_the_questions_of_a_lesson_are_ten_and_no_draft(file):
    assert len(read_quiz(file)) == 10 and not is_draft(file)


def test_the_questions_of_09_have_no_problem(room):
    assert said(room) == ""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("answer = 4", "answer = 5", "question 3: answer=5"),
        ("answer = 4", "answer = 0", "question 3: answer=0"),
        ("answer = 4", "answer = true", "question 3: answer=True"),
        ("[questions.why]", "[questions.reason]", "question 1: [questions.why] needs ko and en"),
        ('en = "Second promise', 'en = ""  # "', "question 4: where.en holds ''"),
        ('en = "Second promise: a', 'en = "Third promise: a', "question 4: the core has no head"),
        ('ko = "두 번째 약속: 조금', 'ko = "둘째 약속: 조금', "question 4: 'Second promise: a l"),
        ('en = "On a GPU cluster"', 'en = "Deeper"', "question 10: the core has no heading 'Deep"),
        ('"Layer norm", ', "", "question 7: options: 3 in ko and 2 in en"),
        ('"Dropout"]', '"Batch norm"]', "question 7: two options are the same in en"),
        ('"Layer norm"', "3", "question 7: options.en holds 3"),
        ('"Layer norm"', '"층 정규화"', "question 7: Hangul in the English"),
        ('ko = "행렬이 얇아지고', 'ko = "x" # "', "question 4: no Hangul in the Korean"),
        ("[[questions]]", "[[questions", "not TOML"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(old, new, message, room):
    edit(room / "quiz.toml", old, new)
    assert message in said(room), said(room)


def test_answers_that_need_no_reading_are_refused(room):
    file = room / "quiz.toml"
    text = re.sub(r"^answer = \d", "answer = 2", file.read_text(encoding="utf-8"), flags=re.M)
    file.write_text(text, encoding="utf-8")
    assert "option 2 is the right one 10 times, at most 5" in said(room)
    shutil.copy(ROOM / "quiz.toml", room)
    for question in read_quiz(file):
        right = question.options["en"][question.answer]
        edit(file, f'"{right}"', f'"{right}{", as everybody knows" * 5}"', 2)
    assert "the right option is the longest 10 times in en" in said(room)


def test_one_table_is_no_list_of_questions(room):
    (room / "quiz.toml").write_text('[questions.why]\nko = "가"\nen = "a"\n', encoding="utf-8")
    assert "each begins with [[questions]]" in said(room)


def test_nine_questions_are_one_too_few(room):
    text = (room / "quiz.toml").read_text(encoding="utf-8")
    (room / "quiz.toml").write_text(text[: text.rindex("[[questions]]")], encoding="utf-8")
    assert "9 questions: write 10" in said(room)


def test_the_same_question_twice_is_said(room):
    first, second = (question.question for question in read_quiz(room / "quiz.toml")[:2])
    edit(room / "quiz.toml", second["en"], first["en"])
    assert f"asked twice: {first['en']!r}" in said(room)


def test_the_cell_is_the_last_of_the_core_and_counts_as_none(room):
    lesson = room / "lesson.py"
    cells = count(read_lesson(lesson)).cells
    edit(lesson, "# %%\nquiz()\n", "")
    assert "no cell is `quiz()`" in said(room)
    assert count(read_lesson(lesson)).cells == cells
    edit(lesson, "# %%\nwhole.memory", "# %%\nquiz()\n# %%\nwhole.memory")
    assert 'quiz() is the last cell of the core, once, just before "## Deeper"' in said(room)
    (room / "quiz.toml").unlink()
    assert "quiz() without questions: write quiz.toml" in said(room)


def test_build_check_names_it(demo_root, capsys):
    room = catalog.room(demo_root, "97_demo")
    shutil.copy(ROOM / "quiz.toml", room)
    found = [str(p) for p in build.check(demo_root, ["97_demo"])]
    assert any("quiz.toml is there, and no cell is `quiz()`" in problem for problem in found)


def test_a_new_lesson_has_a_draft_that_builds(demo_root):
    assert main(["new-lesson", "42_new_thing"]) == 0
    assert is_draft(catalog.room(demo_root, "42_new_thing") / "quiz.toml")
    edit(catalog.room(demo_root, "42_new_thing") / "quiz.toml", "draft = true", "")
    main(["build", "42"])
    assert [p.message for p in build.check(demo_root, ["42_new_thing"])] == [
        "1 questions: write 10"
    ]


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_without_a_page_all_are_asked_and_the_answers_come_last(lang, lesson_09, capsys):
    set_language(lang)
    asked = quiz().questions
    text = capsys.readouterr().out
    answers = text.index("\n답\n" if lang == "ko" else "\nAnswers\n")
    for question in asked:
        assert text.index(question.question[lang]) < answers < text.index(question.why[lang])
    page = questions._as_html(asked)
    assert page.index("<details>") > page.rindex('<ol type="A">') and "<code>.grad</code>" in page
    assert bool(re.search("[가-힣]", text + page)) == (lang == "ko")


def test_in_a_front_end_the_widget_has_one_language_and_the_page_its_own(lesson_09, monkeypatch):
    shown = []
    monkeypatch.setattr(questions, "front_end_present", lambda: True)
    monkeypatch.setattr(questions, "display", shown.append)
    set_language("en")
    quiz()
    from ipywidgets.widgets import widget

    (bundle,) = shown
    model = widget._instances[bundle["application/vnd.jupyter.widget-view+json"]["model_id"]]
    assert len(model.questions) == 10
    assert not re.search("[가-힣]", str(model.questions) + str(model.words))
    assert "<details>" in bundle["text/html"] and bundle["text/plain"].startswith("Test yourself")


def test_without_a_lesson_or_questions_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("DLCOURSE_WORDS", raising=False)
    with pytest.raises(ValueError, match="call lesson"):
        quiz()
    monkeypatch.setenv("DLCOURSE_WORDS", str(tmp_path / "words.toml"))
    with pytest.raises(ValueError, match=r"has no \[\[questions\]\]: write ten"):
        quiz()
