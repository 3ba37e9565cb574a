"""The room of a lesson: what is missing in it is named, and a new one builds and passes."""

from __future__ import annotations

import ast
import shutil
import string
import sys
from pathlib import Path

import pytest
from kept_ranks import KeptRanks

from dlcourse import cli
from dlcourse.course import build, catalog
from dlcourse.course.exercises import all_exercises, check, find_exercise
from dlcourse.course.exercises.room import load
from dlcourse.course.new_lesson import new_lesson
from dlcourse.course.room_check import check_room
from dlcourse.course.source import read_lesson
from dlcourse.ranks import Ranks
from dlcourse.words import strings

ROOT = catalog.own_root()
DEMO = ROOT / "tests" / "demo" / "notebooks" / "source" / "97_demo"
FOLDERS = sorted((ROOT / "notebooks" / "source").glob("*/exercises/[a-z]*/"))


# -- an exercise that is incomplete ---------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo's exercise."""
    shutil.copytree(DEMO, tmp_path / "97_demo")
    return tmp_path / "97_demo" / "exercises" / "mean"


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("name", ["check.py", "solution.py", "texts.toml"])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"97_demo/exercises/mean has no {name}"):
        load(folder)


def test_an_exercise_needs_a_wrong_answer(folder):
    for file in folder.glob("wrong_*.py"):
        file.unlink()
    with pytest.raises(ValueError, match=r"97_demo/exercises/mean has no wrong_\*\.py"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("texts.toml", 'en = "the mean"\n', "", r"texts.toml: \[cases.values\] has no en"),
        ("texts.toml", 'ko = "평균값"', 'ko = " "', r"texts.toml: \[cases.values\] has no ko"),
        ("texts.toml", 'en = "the mean"', 'de = "x"\nen = "y"', "texts.toml: .* has de, which"),
        ("texts.toml", 'en = "Start with the sum."', "", "texts.toml: hint 1 has no en"),
        ("texts.toml", "[cases.values]", "[cases.value]", r"texts.toml has no \[cases.values\]"),
        ("texts.toml", "[messages.", "[message.", r"texts.toml: \[message\] is none of cases"),
        ("texts.toml", "[cases.values]", "[cases.values", "texts.toml is no TOML: .*line"),
        ("check.py", '"values", ', "", r"\[cases.values\] is none of the CASES"),
        ("check.py", "NAMES", "_NAMES", "check.py does not define NAMES"),
        ("check.py", "def check(", "def check_mean(", "check.py does not define check"),
        ("wrong_not_divided.py", "# caught by:", "# by:", "wrong_not_divided.py: the first line"),
        (
            "wrong_not_divided.py",
            "values",
            "shape",
            "wrong_not_divided.py: case 'shape' is unknown",
        ),
    ],
)
def test_what_is_incomplete_is_named(file, old, new, said, folder):
    edit(folder / file, old, new)
    with pytest.raises(
        ValueError, match=f"97_demo/exercises/mean/.*{said}" if "/" in said else said
    ):
        load(folder)


def test_hints_that_are_missing_are_named(folder):
    text = (folder / "texts.toml").read_text()
    (folder / "texts.toml").write_text(text.partition("[[hints]]")[0])
    with pytest.raises(ValueError, match=r"mean/texts.toml has no \[\[hints\]\]"):
        load(folder)


def test_what_a_lesson_shares_is_found_and_yields_to_the_exercises_own(folder):
    (folder.parent / "common.py").write_text('NAMES = ("mean",)\n')
    edit(folder / "check.py", 'NAMES = ("mean",)', "from ..common import NAMES  # noqa: E402")
    case = '[cases.values]\nko = "평균값"\nen = "the mean"\n'
    edit(folder / "texts.toml", case, "")
    other = '[cases.bytes]\nko = "바이트"\nen = "shared"\n'
    (folder.parent / "texts.toml").write_text(case + other)
    exercise = load(folder)
    assert exercise.names == ("mean",)
    assert exercise.cases["values"]["en"] == "the mean"
    assert exercise.cases["bytes"]["en"] == "bytes sent"


# -- the course's exercises -----------------------------------------------------------------------


def test_every_folder_is_an_exercise():
    assert len(FOLDERS) == len(all_exercises()) > 40


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parents[1].name[:2]}.{f.name}")
def test_messages_are_used_and_have_the_same_fields_in_both_languages(folder):
    exercise = find_exercise(f"{folder.parents[1].name[:2]}.{folder.name}")
    sources = [*folder.parent.glob("*/check.py"), folder.parent / "common.py"]
    words = {
        node.value
        for file in sources
        if file.exists()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not exercise.messages.keys() - words, "no check of the lesson uses these messages"
    for key, text in exercise.messages.items():
        korean, english = (
            {field for _, field, _, _ in string.Formatter().parse(text[lang]) if field is not None}
            for lang in ("ko", "en")
        )
        assert korean == english, key


def test_an_exercise_is_read_only_when_it_is_asked_for():
    import subprocess

    code = (
        "import sys; from dlcourse.course.exercises import find_exercise; find_exercise('06.peak');"
        "print(sum(m.startswith('exercises_') and m.endswith('.check') for m in sys.modules),"
        "'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.split() == ["1", "False"], run.stderr


# -- a new lesson ---------------------------------------------------------------------------------


def test_a_new_lesson_builds_and_its_exercise_passes(demo_root, capsys):
    assert cli.main(["new-lesson", "42_new_thing"]) == 0
    assert "written: notebooks/source/42_new_thing/lesson.py" in capsys.readouterr().out
    assert cli.main(["build", "42"]) == 0
    assert build.check(demo_root, ["42_new_thing"]) == []
    strings.set_language("en")
    exercise = find_exercise("42.example")
    with Ranks(2, default=False) as pool:
        pool.cell("def mean(number):\n    raise NotImplementedError", record=False)
        assert not check("42.example", pool=pool).passed
        pool.cell(exercise.solution, record=False)
        assert check("42.example", pool=pool).passed
        for wrong in exercise.wrong:
            pool.cell(wrong.source, record=False)
            cases = check("42.example", pool=pool).cases
            assert wrong.caught_by and all(cases[case] is False for case in wrong.caught_by)


WORDS = """
[question]
ko = "무엇일까요?"
en = "What is it?"

[title]
ko = "시험"
en = "Demo"
"""
NONE_ASKED = "PREDICTIONS = {}\n"
ASKED = """
from dlcourse.course.predictions import Asked

PREDICTIONS = {"97.more": Asked(lambda: 3, reason="reason")}
"""


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("lesson.py", 'check("97.mean")', 'check("97.means")', "the room has no exercises/means"),
        ("lesson.py", 'check("97.mean")', "1", 'no cell has check("97.mean")'),
        ("lesson.py", 'exercise="97.mean"', "", 'no cell has exercise="97.mean"'),
        ("lesson.py", ", ..., formula=num_ranks * (num_ranks - 1) / 2", "", "has no 97.sum"),
        ("lesson.py", 'compare("97.sum"', 'compare("97.sums"', "no cell predicts it"),
        ("lesson.py", 'check("97.mean")', 't(".none")', "words.toml has no [none]"),
        ("exercises/mean/texts.toml", "[cases.values]", "[cases.v]", "has no [cases.values]"),
        ("exercises/mean/solution.py", "", None, "has no solution.py"),
        ("words.toml", "[title]", "[titel]", "[title] is missing"),
        ("words.toml", "[title]", "[titel", "is not TOML"),
        ("words.toml", "[title]", '[a]\nko = "{x} 가"\nen = "{y}"\n[title]', "fields differ"),
        ("words.toml", "[title]", '[a]\nko = "가"\n[title]', "needs two texts"),
        ("predictions.py", NONE_ASKED, ASKED, 'no cell has predict("97.more")'),
        ("predictions.py", NONE_ASKED, ASKED, "words.toml has no [reason]"),
        ("predictions.py", NONE_ASKED, "PREDICTIONS = {", "SyntaxError"),
    ],
)
def test_what_a_room_lacks_is_named_by_build_check(file, old, new, said, demo_root):
    source = catalog.source_path(demo_root, "97_demo")
    room = source.parent
    (room / "words.toml").write_text(WORDS)
    assert check_room(demo_root, read_lesson(source, source.relative_to(demo_root))) == []
    (room / "predictions.py").write_text(NONE_ASKED)
    if new is None:
        (room / file).unlink()
    else:
        edit(room / file, old, new)
    found = build.check(demo_root, ["97_demo"])
    assert any(said in problem.message for problem in found), [*map(str, found)]


def test_a_new_lesson_leaves_what_its_room_has(demo_root):
    room = catalog.room(demo_root, "42_new_thing")
    room.mkdir()
    (room / "words.toml").write_text("# mine\n")
    new_lesson(demo_root, "42_new_thing")
    assert (room / "words.toml").read_text() == "# mine\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("4_short", "give two digits"),
        ("42", "give two digits"),
        ("42_Big", "give two digits"),
        ("42_../x", "give two digits"),
        ("97_demo", "lesson 97_demo exists: notebooks/source/97_demo/lesson.py"),
        ("97_other", "number 97 is taken by 97_demo"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name, said, demo_root, capsys):
    before = sorted(demo_root.rglob("*"))
    assert cli.main(["new-lesson", name]) == 2
    assert said in capsys.readouterr().err
    assert sorted(demo_root.rglob("*")) == before


def test_a_planned_lessons_number_is_taken():
    with pytest.raises(ValueError, match="number 02 is taken by 02_backends"):
        new_lesson(ROOT, "02_other")


# -- ranks that the suite uses again --------------------------------------------------------------

RIGHT = "    dist.all_reduce(x)\n    return x / world_size\n"


@pytest.fixture(scope="module")
def learner():
    with Ranks(2, default=False) as ranks:
        yield ranks


@pytest.fixture
def kept(monkeypatch, demo_root):
    pools = KeptRanks()
    monkeypatch.setattr("dlcourse.ranks.Ranks", pools)
    yield pools
    pools.end()


def test_ranks_are_used_again_after_checks_that_change_nothing(kept, learner):
    for body in (RIGHT, "    raise NotImplementedError", "    return x[:3]", RIGHT):
        learner.cell(f"def mean(x):\n{body}", record=False)
        passed = check("97.mean", pool=learner).passed
    assert passed and kept.started == 1


@pytest.mark.parametrize(
    "change",
    [
        "torch.nn.Linear.forward = None",
        "dist.all_gather = print",
        "import dlcourse.parallel.data as d; d.train = None",
        "torch.set_default_dtype(torch.float64)",
        "torch.set_grad_enabled(False)",
        "torch.use_deterministic_algorithms(True)",
        "dist.new_group()",
        "dist.distributed_c10d._get_default_store().set('key', '1')",
        "import os; os.environ['KEY'] = '1'",
        "import os; os.chdir('/')",
        "import sys; sys.path.insert(0, '/')",
        "import random; random.seed(1)",
        "from threading import Event, Thread; Thread(target=Event().wait, daemon=True).start()",
        "import __main__; __main__.kept = 1",
        "torch.nn.modules.module.register_module_forward_hook(print)",
        "dist.isend(x, 1 - rank)",
        "dist.all_reduce(x.clone(), async_op=True) if rank else None",
    ],
)
def test_ranks_that_a_check_has_changed_are_not_used_again(change, kept, learner):
    learner.cell(f"def mean(x):\n    {change}\n{RIGHT}", record=False)
    check("97.mean", pool=learner)
    assert kept.started == 1 and not kept.pools
