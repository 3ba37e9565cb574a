"""A learner's progress: kept once, read whatever became of the file, ticked on the start page."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from jupyter_server.services.contents.largefilemanager import (
    AsyncLargeFileManager,
    LargeFileManager,
)

from dlcourse.cli import main
from dlcourse.course import catalog, progress
from dlcourse.course.exercises import checking, lesson_exercises
from dlcourse.course.exercises.registry import exercise_ids

ROOT = catalog.own_root()
PAGE = (ROOT / "notebooks/ko/index.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def learner(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DLCOURSE_LEARNER", str(tmp_path / "learner"))
    return tmp_path / "learner"


def test_an_exercise_is_kept_once_and_a_broken_line_costs_that_line(learner):
    assert progress.read_passed() == {}
    for _ in range(2):
        assert progress.keep_passed("03.mean")
    with (learner / progress.FILE).open("a") as file:
        file.write('[1]\n{"id": "03.buckets"}\nnoise\n{"id": "01.deadl')
    assert progress.keep_passed("00.rank_sum")
    assert list(progress.read_passed()) == ["00.rank_sum", "03.mean"]
    assert (learner / progress.FILE).read_text().count("03.mean") == 1


@pytest.mark.parametrize("there", [True, False])
def test_a_passed_check_is_kept_where_a_person_is(there, monkeypatch):
    """And a failed one is not."""
    monkeypatch.setattr(checking, "front_end_present", lambda: there)
    monkeypatch.setattr(checking, "fetched", lambda exercise, pool: {})
    for id, passed in (("03.mean", True), ("03.overlap", False)):
        result = checking.CheckResult(id, passed, "")
        monkeypatch.setattr(checking, "judged", lambda exercise, packed, r=result: r)
        checking.check(id)
    assert [*progress.read_passed()] == (["03.mean"] if there else [])


def test_a_passed_check_that_cannot_be_kept_says_so(learner, monkeypatch, capsys):
    learner.write_text("a file where the folder should be")
    monkeypatch.setattr(checking, "front_end_present", lambda: True)
    monkeypatch.setattr(checking, "fetched", lambda exercise, pool: {})
    passed = checking.CheckResult("03.mean", True, "all right")
    monkeypatch.setattr(checking, "judged", lambda exercise, packed: passed)
    assert checking.check("03.mean") is passed
    first, last = capsys.readouterr().out.splitlines()
    assert first == "all right" and last.endswith(str(learner / progress.FILE))


def test_ticks_are_put_in_and_taken_out():
    ids = exercise_ids()
    assert {e.id for e in lesson_exercises("03")} == {id for id in ids if id.startswith("03")}
    passed = dict.fromkeys([id for id in ids if id.startswith("03")], 0.0) | {"01.deadlock": 0.0}
    ticked = progress.with_ticks(PAGE, progress.progress_rows(passed, ids))
    total = sum(id.startswith("01") for id in ids)
    assert "| 03 ✓ | [" in ticked and f"| 01 1/{total} | [" in ticked and "| 00 | [" in ticked
    assert progress.with_ticks(ticked, {}) == PAGE
    assert progress.with_ticks(ticked, progress.progress_rows(passed, ids)) == ticked


@pytest.mark.parametrize("kind", [LargeFileManager, AsyncLargeFileManager])
def test_the_server_gives_the_page_with_ticks_and_saves_it_without(kind, tmp_path):
    (tmp_path / "notebooks/ko").mkdir(parents=True)
    file = tmp_path / "notebooks/ko/index.md"
    other = tmp_path / "notebooks/ko/claims.md"
    for path in (file, other):
        path.write_text(PAGE, encoding="utf-8")
    for exercise in lesson_exercises("03"):
        progress.keep_passed(exercise.id)
    manager = kind(root_dir=str(tmp_path))
    progress.show_on_start_page(manager, exercise_ids)

    def done(result):
        return asyncio.run(result) if asyncio.iscoroutine(result) else result

    model = done(manager.get("notebooks/ko/index.md"))
    assert "| 03 ✓ |" in model["content"]
    assert "✓" not in done(manager.get("notebooks/ko/claims.md"))["content"]
    assert done(manager.get("notebooks/ko/index.md", content=False))["content"] is None
    model["content"] += "\nmine\n"
    done(manager.save(model, "notebooks/ko/index.md"))
    assert file.read_text(encoding="utf-8") == PAGE + "\nmine\n"


def test_the_command_lists_and_exports(capsys):
    progress.keep_passed("03.mean")
    assert main(["progress", "--lang", "en"]) == 0
    row = next(r for r in capsys.readouterr().out.splitlines() if r.startswith("03 "))
    assert row.endswith(f"1/{len(lesson_exercises('03'))}")
    assert main(["progress", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [*record["passed"]] == ["03.mean"] and record["guesses"] == []
