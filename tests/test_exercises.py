"""Exercises: stubs fail, solutions pass, plausible wrong answers are caught, in real ranks."""

from __future__ import annotations

import ast
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
from fuzz_exercises import answers, faults
from kept_ranks import KeptRanks

from dlcourse.course import catalog
from dlcourse.course.exercises import (
    Exercise,
    WrongAnswer,
    all_exercises,
    as_number,
    as_truth,
    check,
    describe,
    find_exercise,
    hint,
    lesson_exercises,
    solution,
)
from dlcourse.course.exercises.checking import _verdict
from dlcourse.course.exercises.room import load
from dlcourse.parallel import data
from dlcourse.ranks import Ranks
from dlcourse.words import strings

ROOT = catalog.course_root()
DEMO = Path(__file__).parent / "demo"


@pytest.fixture(scope="module", autouse=True)
def demo_exercises() -> Iterator[None]:
    """The demo's exercise stands beside the course's own."""
    os.environ["DLCOURSE_ROOT"] = str(DEMO)
    yield
    del os.environ["DLCOURSE_ROOT"]


@pytest.fixture(scope="module")
def pool() -> Iterator[Ranks]:
    """The learner's ranks, into which the cells of exercises go."""
    with Ranks(2, default=False) as ranks:
        yield ranks


@pytest.fixture(autouse=True)
def english() -> Iterator[None]:
    strings.set_language("en")
    yield


def ids() -> list[str]:
    return ["97.mean", *(exercise.id for exercise in all_exercises())]


def define(exercise: Exercise, source: str, pool: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """What running the exercise's cell does."""
    names = ", ".join(repr(name) for name in exercise.names)
    pool.cell(f"for _n in ({names},): globals().pop(_n, None)", record=False)
    if exercise.where == "ranks":
        pool.cell(source, record=False)
        return
    scope: dict = {"__name__": "__main__"}
    exec(source, scope)
    monkeypatch.setattr("dlcourse.course.exercises.checking.kernel_names", lambda: scope)


def stub_of(exercise: Exercise) -> str:
    """The exercise's cell in the built notebook (or, for the demo, in its source)."""
    for root in (ROOT, DEMO):
        for path in sorted((root / "notebooks").glob(f"en/{exercise.lesson}_*.ipynb")):
            for cell in nbformat.read(path, as_version=4).cells:
                if cell.metadata.get("exercise") == exercise.id:
                    return cell.source.partition("\n")[2] if "%%" in cell.source else cell.source
    assert exercise.lesson == "97", f"no cell has exercise={exercise.id!r}"
    return "def mean(x):\n    raise NotImplementedError\n"


@pytest.fixture(scope="module")
def kept_pools() -> Iterator[KeptRanks]:
    pools = KeptRanks()
    yield pools
    pools.end()


@pytest.fixture
def kept(kept_pools: KeptRanks, monkeypatch: pytest.MonkeyPatch) -> KeptRanks:
    """Checks of this test run in ranks that earlier checks have left as they were."""
    monkeypatch.setattr("dlcourse.ranks.Ranks", kept_pools)
    return kept_pools


@pytest.mark.parametrize("id", ids())
def test_the_stub_fails_and_the_solution_passes(id, pool, kept, monkeypatch, capsys):
    exercise = find_exercise(id)
    define(exercise, stub_of(exercise), pool, monkeypatch)
    assert not check(id, pool=pool).passed
    define(exercise, exercise.solution, pool, monkeypatch)
    kept.expect(exercise.solution)
    result = check(id, pool=pool)
    kept.expect("")
    assert result.passed, capsys.readouterr().out


def wrong_answers() -> list[tuple[str, WrongAnswer]]:
    demo = load(DEMO / "notebooks" / "source" / "97_demo" / "exercises" / "mean")
    return [(e.id, wrong) for e in (demo, *all_exercises()) for wrong in e.wrong]


@pytest.mark.parametrize(
    ("id", "wrong"),
    [pytest.param(id, wrong, id=f"{id}-{wrong.name}") for id, wrong in wrong_answers()],
)
def test_a_wrong_answer_is_caught_by_its_case(id, wrong, pool, kept, monkeypatch):
    exercise = find_exercise(id)
    define(exercise, wrong.source, pool, monkeypatch)
    kept.expect(wrong.source)
    if wrong.caught_by == ("hang",):  # said by the engine, on a busy machine later than the limit
        patient = replace(exercise, time_limit=10 * exercise.time_limit)
        monkeypatch.setattr("dlcourse.course.exercises.checking.find_exercise", lambda _: patient)
    result = check(id, pool=pool)
    kept.expect("")
    assert not result.passed and result.text.strip()
    if wrong.caught_by == ("hang",):
        assert "All ranks of a group must make the same calls" in result.text, result.text
        return
    failed = {case for case, ok in result.cases.items() if ok is False}
    assert failed >= set(wrong.caught_by), f"{failed or 'no case'} failed\n{result.text}"
    assert "Error" not in result.text, "an exception is not what should catch it"


@pytest.mark.parametrize("name", catalog.written_lessons(ROOT))
def test_a_lesson_has_three_exercises_each_with_a_cell_and_a_check(name):
    exercises = lesson_exercises(name[:2])
    if [e.id[3:] for e in exercises] != ["example"]:  # of a new lesson, not yet written
        assert len(exercises) >= 3, f"{name} has {len(exercises)}: a lesson has 3 or more"
    cells = nbformat.read(catalog.notebook_path(ROOT, "en", name), as_version=4).cells
    stubs = [c.metadata["exercise"] for c in cells if "exercise" in c.metadata]
    assert sorted(stubs) == sorted(e.id for e in exercises)
    code = "\n".join(c.source for c in cells if c.cell_type == "code")
    for exercise in exercises:
        assert f'check("{exercise.id}")' in code


@pytest.mark.parametrize("id", ids())
def test_an_exercise_has_all_its_words(id):
    exercise = find_exercise(id)
    for source in (exercise.solution, *(wrong.source for wrong in exercise.wrong)):
        defined = {n.name for n in ast.walk(ast.parse(source)) if hasattr(n, "name")}
        assert set(exercise.names) <= defined
    for hints in exercise.hints.values():
        assert all(text.strip() for text in hints)


# -- what a learner is told ---------------------------------------------------------------------


def told(pool: Ranks, source: str, monkeypatch) -> str:
    define(find_exercise("97.mean"), source, pool, monkeypatch)
    result = check("97.mean", pool=pool)
    assert not result.passed
    return result.text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def mean(x):\n    dist.all_reduce(x)\n    return x", "the mean: values are off by"),
        ("def mean(x):\n    dist.all_reduce(x)", "the mean: returned None: is a return missing?"),
        ("def mean(x):\n    return x[:5]", "the shape is (5,), and should be (1000,)"),
        ("def mean(x):\n    return x.double()", "torch.float64, and should be torch.float32"),
        ("def mean(x):\n    return 3", "returned 3 (int), and should return a Tensor"),
        (
            "def mean(x):\n    for _ in range(3): dist.all_reduce(x)\n    return x",
            "sent 11.7 KiB: 3 times the minimum of 3.91 KiB (allowed: 1.05 times)",
        ),
        ("def mean(x):\n    return x", "calls of all_reduce: 0, and should be 1"),
        ("def mean(x):\n    return x + (rank == 1)", "✗ the mean: rank 1: values are off by"),
        ("def mean(x):\n    return x.flatten()[:0]", "✗ the shape: the shape has changed"),
        ("def mean(x):\n    raise NotImplementedError", "not filled in yet"),
        ("def mean(x):\n    return 1 / 0", "ZeroDivisionError: division by zero"),
        ("def mean(x):\n    raise KeyboardInterrupt", "raised RuntimeError: Keyboard"),
        ("def mean(x):\n    raise SystemExit(3)", "raised SystemExit: 3"),
        ("def mean():\n    return 1", "keep the parameters"),
        (
            "class Odd:\n    def __reduce__(self):\n        raise SystemExit(3)\n"
            "odd = Odd()\ndef mean(x):\n    return odd",
            "cannot be sent to fresh ranks: 3",
        ),
        ("mean = 3", "mean must be a function or a class, and is int"),
        ("other = 3", "mean is not defined in the ranks"),
        (
            "import threading\nlock = threading.Lock()\ndef mean(x):\n    with lock: return x",
            "cannot be sent to fresh ranks",
        ),
    ],
)
def test_what_is_wrong_is_said(source, said, pool, monkeypatch):
    assert said in told(pool, source, monkeypatch)


def test_it_is_said_in_korean_too(pool, monkeypatch):
    strings.set_language("ko")
    assert "평균값: 랭크 1: 값이 최대 1.5만큼 다릅니다" in told(
        pool, "def mean(x):\n    return x + 1", monkeypatch
    )


@pytest.mark.parametrize(
    ("lang", "words"), [("ko", "= GPU 7개인데"), ("en", "tensor 7 x pipeline 1")]
)
def test_what_the_planner_refuses_is_said_in_the_learners_language(
    lang, words, pool, kept, monkeypatch
):
    strings.set_language(lang)
    exercise = find_exercise("15.capstone")
    source = "from dlcourse.plan.layouts import Layout\n"
    source += "def submit(task):\n    return max(task.sizes()), Layout(tensor=7)"
    define(exercise, source, pool, monkeypatch)
    assert words in check("15.capstone").text


def test_the_learners_own_line_is_shown(pool, monkeypatch):
    source = "def mean(x):\n    y = x * 2\n    return y / undefined_name"
    text = told(pool, source, monkeypatch)
    assert "return y / undefined_name" in text and "judge.py" not in text


def test_a_rank_that_skips_a_collective_is_named(pool, monkeypatch):
    source = "def mean(x):\n    if rank:\n        dist.all_reduce(x)\n    return x / 2"
    text = told(pool, source, monkeypatch)
    assert "all_reduce" in text and "rank 1" in text
    assert "next cell" not in text and "keep their variables" not in text


def test_an_endless_loop_ends_at_the_time_limit(pool, monkeypatch):
    short = replace(find_exercise("97.mean"), time_limit=2.0)
    monkeypatch.setattr("dlcourse.course.exercises.checking.find_exercise", lambda _: short)
    text = told(pool, "def mean(x):\n    while True:\n        pass", monkeypatch)
    assert "It did not end within 2 seconds" in text
    assert pool.run(len, "abc") == [3, 3], "the learner's own ranks go on"


def test_rank_and_helpers_are_each_ranks_own(pool, monkeypatch):
    helper = "def share():\n    return world_size + 0 * rank\n"
    source = f"{helper}def mean(x):\n    dist.all_reduce(x)\n    x = x / share()\n    return x"
    define(find_exercise("97.mean"), source, pool, monkeypatch)
    assert check("97.mean", pool=pool).passed
    mine = (
        "def mean(x):\n    assert rank == dist.get_rank()\n    dist.all_reduce(x)\n    return x / 2"
    )
    define(find_exercise("97.mean"), mine, pool, monkeypatch)
    assert check("97.mean", pool=pool).passed


def test_a_case_that_no_rank_reached_is_not_passed():
    exercise = find_exercise("97.mean")
    left_out, *reached = exercise.cases
    findings = [{"case": case, "ok": True, "key": "unmet", "values": {}} for case in reached]
    result = _verdict(exercise, [findings] * exercise.num_ranks)
    assert not result.passed and result.cases == {left_out: None, **dict.fromkeys(reached, True)}
    assert result.text.startswith("– ")


def test_a_check_leaves_the_learners_ranks_alone(pool, monkeypatch):
    pool.cell("kept = 41 + rank", record=False)
    before = pool.pids
    define(find_exercise("97.mean"), find_exercise("97.mean").solution, pool, monkeypatch)
    children = {p.pid for p in psutil.Process().children(recursive=True)}
    check("97.mean", pool=pool)
    assert pool["kept"] == [41, 42] and pool.pids == before
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        left = {p.pid for p in psutil.Process().children(recursive=True)} - children
        if not left:
            break
        time.sleep(0.1)
    assert not left, "the fresh ranks have not ended"


def test_without_ranks_a_check_says_what_to_run():
    result = check("97.mean")
    assert not result.passed and "first three code cells" in result.text


def test_unknown_exercises_name_the_known():
    with pytest.raises(ValueError, match=r"'97.gone' is unknown; choose one of: 97.mean"):
        check("97.gone")
    with pytest.raises(ValueError, match="unknown"):
        hint("nothing")


def test_hints_come_one_by_one_and_the_solution_is_a_cell(capsys, monkeypatch):
    monkeypatch.setattr("dlcourse.course.exercises.checking._hints_given", {})
    hint("97.mean")
    assert capsys.readouterr().out == "Hint 1 of 2: Start with the sum.\n"
    hint("97.mean")
    assert 'solution("97.mean")' in capsys.readouterr().out
    solution("97.mean")
    assert capsys.readouterr().out.startswith("%%ranks\ndef mean(x):\n    dist.all_reduce(x)")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "3.mean"}, "two digits"),
        ({"where": "browser"}, "ranks or kernel"),
        ({"wrong": ()}, "at least one wrong answer"),
        ({"hints": {"ko": ("하나",), "en": ()}}, "as many in ko as in en"),
        ({"cases": {"values": {"en": "only"}}}, "in ko and in en"),
    ],
)
def test_an_incomplete_exercise_is_refused(change, said):
    whole = {f: getattr(find_exercise("97.mean"), f) for f in Exercise.__dataclass_fields__}
    with pytest.raises(ValueError, match=said):
        Exercise(**{**whole, **change})


# -- whatever a learner answers -------------------------------------------------------------------

FEW = ("returns a vector", "returns a meta tensor", "right, but NaN", "no parameters")


@pytest.mark.parametrize("id", ids())
def test_an_answer_of_any_kind_is_told_in_words(id, pool, kept, monkeypatch, capfd):
    """`fuzz_exercises.py` tries many more."""
    exercise = find_exercise(id)
    for label, source in answers(exercise):
        if label in FEW:
            define(exercise, source, pool, monkeypatch)
            result = check(id, pool=pool)
            printed = "".join(capfd.readouterr()).replace(result.text, "")
            assert not faults(exercise, label, result.text, result.passed, printed), result.text


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("torch.ones(2)", "Tensor(shape=(2,), dtype=float32), and should return one number"),
        ("torch.ones((), device='meta')", "device=meta), and should return one number"),
        ("'abc'", "'abc' (str), and should return one number"),
        ("(x for x in [1])", "generator object, and should return one number"),
        ("10**5000", "inf, and should be"),
        ("True", "True (bool), and should return one number"),
        ("None if rank == 1 else torch.ones(3)", "rank 1: returned None: is a return missing?"),
    ],
)
def test_the_message_names_what_was_returned(answer, said, pool, kept, monkeypatch):
    source = f"def mean_over_ranks(x):\n    return {answer}\n"
    define(find_exercise("03.mean"), source, pool, monkeypatch)
    text = check("03.mean", pool=pool).text
    assert said in text and "Traceback" not in text


def test_what_a_checker_cannot_use_is_not_the_learners_exception(pool, kept, monkeypatch):
    for lang, said in (("en", "It returned 'abc' (str)"), ("ko", "돌려준 것: 'abc' (str)")):
        strings.set_language(lang)
        source = "def linear(x, shard):\n    return 'abc'\n"
        define(find_exercise("06.peak"), source, pool, monkeypatch)
        text = check("06.peak", pool=pool).text
        assert said in text and "TypeError" in text and "Traceback" not in text


def test_tensors_that_do_not_meet_end_without_glooss_own_words(pool, monkeypatch, capfd):
    source = "def mean(x):\n    dist.all_reduce(torch.ones(5 + 3 * rank))\n    return x"
    text = told(pool, source, monkeypatch)
    assert "tensors of" in text and "terminate called" not in text + "".join(capfd.readouterr())
    assert pool.run(len, "abc") == [3, 3], "the learner's own ranks go on"


NAN = "float('nan')"


@pytest.mark.parametrize(
    ("id", "right", "spoilt"),
    [
        ("03.overlap", "part.view_as(parameter)", f"part.view_as(parameter) * {NAN}"),
        (
            "03.find_the_bug",
            "        scheduler.step(loss.item())\n",
            "        scheduler.step(loss.item())\n"
            f"    if rank == 1:\n        model[0].bias.data.fill_({NAN})\n",
        ),
        (
            "04.all_reduces",
            "    mlp.up, mlp.down",
            "    if rank == 2:\n"
            f"        attention.proj.bias.register_hook(lambda grad: grad * {NAN})\n"
            "    mlp.up, mlp.down",
        ),
        ("06.peak", "grad_shard / world_size", f"grad_shard * {NAN}"),
        ("10.clip", "    return norm", f"    return norm * {NAN}"),
    ],
)
def test_nan_never_passes_for_small(id, right, spoilt, pool, kept, monkeypatch):
    """It is not larger than a limit either."""
    exercise = find_exercise(id)
    assert right in exercise.solution
    define(exercise, exercise.solution.replace(right, spoilt), pool, monkeypatch)
    result = check(id, pool=pool)
    assert False in result.cases.values(), result.text


def test_numbers_are_numbers_whatever_holds_them():
    import numpy
    import torch

    for got in (3, 3.0, torch.tensor(3), torch.tensor([[3.0]]), numpy.float32(3), numpy.array([3])):
        assert as_number(got) == 3.0
    for got in (None, True, "3", 3j, [3], torch.ones(2), torch.tensor(True), torch.tensor(3j)):
        assert as_number(got) is None
    assert as_truth(torch.tensor(True)) is True and as_truth(numpy.bool_(False)) is False
    assert as_truth("True") is None and as_truth(None) is None
    assert describe([torch.ones(2), None]) == "[Tensor(shape=(2,), dtype=float32), None] (list)"


# -- code of the learner's own files --------------------------------------------------------------

RIGHT = "def mean(x):\n    dist.all_reduce(x)\n    return x / dist.get_world_size()\n"


def test_a_learners_changed_copy_is_judged(tmp_path, pool, monkeypatch):
    """A module of the course, copied into a folder, imported, and changed within the second."""
    copied = Path(data.__file__).read_text()
    file = tmp_path / "data.py"
    file.write_text(f"{copied}\n\n{RIGHT}")
    pool.cell(f"import sys\nsys.path.append({str(tmp_path)!r})", record=False)
    try:
        define(find_exercise("97.mean"), "from data import mean", pool, monkeypatch)
        assert check("97.mean", pool=pool).passed
        file.write_text(f"{copied}\n\n{RIGHT.replace('x / dist', 'x * dist')}")
        define(find_exercise("97.mean"), "from data import mean", pool, monkeypatch)
        result = check("97.mean", pool=pool)
        assert not result.passed and "run importlib.reload(data)" in result.text
        again = "import data, importlib\nmean = importlib.reload(data).mean"
        define(find_exercise("97.mean"), again, pool, monkeypatch)
        result = check("97.mean", pool=pool)
        assert not result.passed and "importlib" not in result.text
        file.write_text(f"{copied}\n\n{RIGHT}")
        through = "import data\ndef mean(x):\n    return data.mean(x)"
        define(find_exercise("97.mean"), through, pool, monkeypatch)
        assert check("97.mean", pool=pool).passed
    finally:
        pool.cell("sys.path.pop()\nsys.modules.pop('data')", record=False)


@pytest.mark.parametrize(
    "wrapped",
    [
        "@torch.no_grad()\ndef mean(x):\n    return _mean(x)",
        "import functools\nmean = functools.partial(_mean)",
        "class Mean:\n    def go(self, x):\n        return _mean(x)\nmean = Mean().go",
    ],
)
def test_a_wrapped_function_sees_its_own_rank(wrapped, pool, monkeypatch):
    inner = (
        "def _mean(x):\n    assert rank == dist.get_rank()\n    dist.all_reduce(x)\n"
        "    return x / 2"
    )
    define(find_exercise("97.mean"), f"{inner}\n\n{wrapped}", pool, monkeypatch)
    assert check("97.mean", pool=pool).passed


def test_names_that_a_learner_gave_another_meaning_keep_it(pool, monkeypatch):
    source = (
        "import torch.distributed\n"
        "class Mine:\n"
        "    def all_reduce(self, x):\n"
        "        torch.distributed.all_reduce(x)\n"
        "        x += 1\n"
        "def mean(x):\n    Mine().all_reduce(x) if F == 'mine' else dist.all_reduce(x)\n"
        "    return x / world_size\n"
        "_F, F = F, 'mine'"
    )
    try:
        assert "values are off by up to 0.5" in told(pool, source, monkeypatch)
    finally:
        pool.cell("F = _F", record=False)
