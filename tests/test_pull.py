"""An nbgitpuller link that is followed again: a learner's edits survive what the course changes.

A course of one lesson in a git repository of this machine, pulled as nbgitpuller pulls it in a
server that `dlcourse.course.singleuser` has prepared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from dlcourse.course import merge_notebook, singleuser

REPOSITORY = Path(__file__).resolve().parents[1]
LESSON = "notebooks/ko/00_start.ipynb"
TABLE = {"text/html": "<table><tr><td>1</td></tr></table>", "text/plain": "1"}


def git(folder: Path, *arguments: str) -> None:
    named = ("-c", "user.name=teacher", "-c", "user.email=teacher@example.org")
    subprocess.run(["git", *named, *arguments], cwd=folder, check=True, capture_output=True)


class Course:
    """The teacher's repository, and the learner's home."""

    def __init__(self, place: Path) -> None:
        self.theirs, self.home = place / "course", place / "home"
        self.mine = self.home / "course"
        self.home.mkdir()
        (self.theirs / LESSON).parent.mkdir(parents=True)
        git(self.theirs, "init", "-q", "-b", "main")
        for name in ("00_start", "01_collectives"):
            lesson = (self.theirs / LESSON).with_stem(name)
            shutil.copy(REPOSITORY / "notebooks" / "ko" / lesson.name, lesson)
        self.publish()

    def publish(self) -> None:
        git(self.theirs, "add", "-A")
        git(self.theirs, "commit", "-q", "-m", "lessons")

    def pull(self) -> None:
        """What following the link does; `GitPuller` is what the server's page calls."""
        environment = {**os.environ, "HOME": str(self.home), singleuser.COPY: "0"}
        code = (
            "import os, sys\nfrom pathlib import Path\nfrom dlcourse.course import singleuser\n"
            "os.environ.update(singleuser.prepare(Path.home()))\n"
            "from nbgitpuller.pull import GitPuller\n"
            "for line in GitPuller(sys.argv[1], sys.argv[2], branch='main').pull(): print(line)"
        )
        command = [sys.executable, "-c", code, f"file://{self.theirs}", str(self.mine)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def edit(self, of: Path, name: str = LESSON):
        notebook = nbformat.read(of / name, 4)
        return notebook, lambda: nbformat.write(notebook, of / name)

    def learned(self, name: str = LESSON):
        """The learner's notebook, which is one."""
        notebook = nbformat.read(self.mine / name, 4)
        nbformat.validate(notebook)
        return notebook, "\n".join(cell.source for cell in notebook.cells)


@pytest.fixture
def course(tmp_path) -> Course:
    if shutil.which("git") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs git")
    if os.environ.get("CI") is None:
        pytest.importorskip("nbgitpuller", reason="needs nbgitpuller: pip install 'dlcourse[hub]'")
    course = Course(tmp_path)
    course.pull()
    return course


def code_cells(notebook) -> list[int]:
    return [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]


def test_edits_outputs_and_new_cells_survive_and_the_courses_changes_come(course):
    mine, save = course.edit(course.mine)
    first, *_, last = code_cells(mine)
    mine.cells[last].source += "\nanswer = 42  # mine"
    mine.cells[first].outputs = [nbformat.v4.new_output("display_data", TABLE)]
    mine.cells.append(nbformat.v4.new_markdown_cell("my note"))
    save()
    theirs, publish = course.edit(course.theirs)
    theirs.cells[0].source += "\n\na sentence that was missing"
    publish()
    course.publish()
    course.pull()
    notebook, text = course.learned()
    assert "answer = 42  # mine" in text and "my note" in text
    assert notebook.cells[first].outputs[0]["data"] == TABLE
    assert "a sentence that was missing" in text


def test_where_both_have_changed_a_cell_the_learners_file_stays(course):
    mine, save = course.edit(course.mine)
    first = code_cells(mine)[0]
    mine.cells[first].source += "\nmine = 1"
    save()
    before = (course.mine / LESSON).read_bytes()
    theirs, publish = course.edit(course.theirs)
    theirs.cells[first].source = "theirs = 1\n" + theirs.cells[first].source
    publish()
    course.publish()
    course.pull()
    assert (course.mine / LESSON).read_bytes() == before


def test_a_lesson_nobody_has_touched_is_renewed_and_one_that_is_gone_stays_if_edited(course):
    gone = LESSON.replace("00_start", "01_collectives")
    mine, save = course.edit(course.mine, gone)
    mine.cells[0].source += "\nmine"
    save()
    theirs, publish = course.edit(course.theirs)
    theirs.cells[0].source += "\nnew"
    publish()
    (course.theirs / gone).unlink()
    course.publish()
    course.pull()
    assert "new" in course.learned()[1] and "mine" in course.learned(gone)[1]


def test_a_lesson_that_was_deleted_comes_back_fresh(course):
    (course.mine / LESSON).unlink()
    course.pull()
    assert (course.mine / LESSON).read_bytes() == (course.theirs / LESSON).read_bytes()


# ------------------------------------------------------------------------------- the merge driver


def merged(place: Path, base: str, mine: str, theirs: str) -> tuple[bool, str]:
    """What the driver says and leaves of three files."""
    files = [place / name for name in ("base.ipynb", "mine.ipynb", "theirs.ipynb")]
    for file, content in zip(files, (base, mine, theirs), strict=True):
        file.write_text(content)
    return merge_notebook.merge(*files), files[1].read_text()


def with_cell(source: str) -> str:
    cell = nbformat.v4.new_code_cell(source, id="one")
    return nbformat.writes(nbformat.v4.new_notebook(cells=[cell])) + "\n"


def test_a_merge_that_is_no_notebook_is_not_taken(tmp_path):
    """Lines of both sides that git can put together, and Jupyter cannot read."""
    base = '{\n"cells": [],\n"b": 1,\n"c": 1,\n"d": 1,\n"e": 1\n}\n'
    mine = base.replace('"e": 1', '"e": 2')
    assert merged(tmp_path, base, mine, base.replace('"b": 1', '"b": 2')) == (False, mine)


def test_a_merge_that_mixes_a_learners_cell_is_not_taken(tmp_path):
    source = "\n".join(f"x{i} = {i}" for i in range(9))
    mine = with_cell(source + "\nmine = 1")
    found = merged(tmp_path, with_cell(source), mine, with_cell("theirs = 1\n" + source))
    assert found == (False, mine)


def test_a_change_of_the_course_alone_is_taken(tmp_path):
    theirs = with_cell("theirs = 1")
    assert merged(tmp_path, with_cell("1"), with_cell("1"), theirs) == (True, theirs)
