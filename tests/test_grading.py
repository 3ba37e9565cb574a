"""`dlcourse grade`: every submission a row, and none changes another's, or the teacher's files.

The submissions are of lesson 00, whose exercises are judged in seconds. Hostile ones hand in a
right answer beside what they try.
"""

from __future__ import annotations

import csv
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest

from dlcourse.course import catalog
from dlcourse.course.exercises import find_exercise
from dlcourse.course.grading import grades, sandbox
from dlcourse.course.grading.grades import Row, grade, write
from dlcourse.course.grading.sandbox import Limits

SET_UP = "from dlcourse import Ranks, check\nranks = Ranks(2)"
ANSWERED = "00.rank_sum"
CASES = len(find_exercise(ANSWERED).cases)
LIMITS = Limits(seconds=600, memory=3 << 30, processes=400)
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", autouse=True)
def shut_in():
    if shutil.which("bwrap") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs bubblewrap: install it")
    if not sandbox.available():
        pytest.skip("bubblewrap gets no namespaces on this machine")


def answer(id: str = ANSWERED) -> str:
    exercise = find_exercise(id)
    return ("%%ranks\n" if exercise.where == "ranks" else "") + exercise.solution


def hand_in(folder: Path, name: str, *cells: str) -> Path:
    made = [nbformat.v4.new_code_cell(cell) for cell in (*cells, f'check("{ANSWERED}")')]
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def graded(folder: Path, limits: Limits = LIMITS) -> dict[str, Row]:
    rows = grade(folder, folder.parent / "grades.csv", limits, trust=False, tell=lambda row: None)
    return {Path(row.submission).stem: row for row in rows}


# name -> (cell, status, whether the right answer beside it still counts)
HOSTILE = {
    "fork_bomb": (
        "import os, time\ntry:\n    while True:\n        os.fork()\n"
        "except OSError:\n    time.sleep(3)\n    os._exit(1)",
        "crashed",
        False,
    ),
    "deletes": (
        "import shutil, dlcourse, pathlib\n"
        "for place in (dlcourse.__path__[0], '/tmp', '/usr', '/etc'):\n"
        "    shutil.rmtree(place, ignore_errors=True)",
        "graded",
        False,  # it has deleted its own folder, where the kernel's connection is
    ),
    "patches_check": (
        "import subprocess, dlcourse, dlcourse.course.exercises.checking as c\n"
        "c.CheckResult.passed = True\nc.judged = c._judge = lambda *a: print('passed')\n"
        "dlcourse.check = check = lambda id: print('passed')\n"
        "subprocess.Popen(['sleep', '98765'], start_new_session=True)",
        "graded",
        True,
    ),
}


def test_hostile_submissions_change_no_grade_but_their_own(tmp_path):
    """After them an honest one is graded as it is, and nothing of theirs is left."""
    folder = tmp_path / "handed_in"
    folder.mkdir()
    for name, (cell, _, _) in HOSTILE.items():
        hand_in(folder, f"b_{name}", SET_UP, answer(), cell)
    hand_in(folder, "c_honest", SET_UP, answer())
    before = sorted(path.name for path in tmp_path.rglob("*"))
    rows = graded(folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*before, "grades.csv"])
    honest = rows["c_honest"]
    assert (honest.status, honest.passed) == ("graded", 1), honest
    assert honest.exercises[ANSWERED] == (CASES, CASES)
    for name, (_, status, counts) in HOSTILE.items():
        row = rows[f"b_{name}"]
        assert row.status == status, row
        assert row.passed == 1 or not counts, row
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"])]
    assert not [line for line in left if line and "98765" in line]


@pytest.mark.parametrize(
    ("cell", "ends"),
    [
        # what it has put out may fill its kernel's memory before its time is up
        ("while True: print('x' * 100_000)", ("time", "memory")),
        ("held = []\nwhile True: held.append(bytearray(b'x' * (1 << 26)))", ("memory",)),
        ("import os; os._exit(0)", ("crashed",)),
    ],
    ids=["endless output", "all memory", "ends its kernel"],
)
def test_what_has_no_end_is_ended(cell, ends, tmp_path):
    folder = tmp_path / "handed_in"
    folder.mkdir()
    hand_in(folder, "one", cell)
    row = graded(folder, Limits(seconds=60, memory=1 << 30))["one"]
    assert row.status in ends and row.passed == 0, row


LOOKS = """
import glob, os, pathlib, socket, dlcourse
seen = []
def tried(what, f):
    try:
        if f(): seen.append(what)
    except OSError:
        pass
root = pathlib.Path({root!r})
for name in glob.glob(str(root / 'notebooks/source/*/exercises/*/solution.py')):
    tried('solution', lambda: open(name).read())
tried('git', lambda: os.listdir(root / '.git'))
tried('others', lambda: os.listdir({folder!r}))
tried('files', lambda: os.path.exists({secret!r}))
tried('network', lambda: socket.create_connection(('127.0.0.1', {port}), 2))
programs = [pid for pid in os.listdir('/proc') if pid.isdigit()]
for pid in programs:
    line = open(f'/proc/{{pid}}/cmdline').read()
    tried('grader', lambda: 'pytest' in line)
    if 'grading.submission' in line:
        tried('result', lambda: os.listdir(f'/proc/{{pid}}/fd'))
"""


def test_a_submission_sees_neither_solutions_nor_teacher_nor_network(tmp_path):
    """What it has seen it hands in as an answer: a wrong one, where there is anything."""
    folder = tmp_path / "handed_in"
    folder.mkdir()
    hand_in(folder, "another", SET_UP)
    secret = tmp_path / "secret"
    secret.write_text("the teacher's")
    with socket.create_server(("127.0.0.1", 0)) as server:
        values = dict(root=str(catalog.own_root()), folder=str(folder), secret=str(secret))
        look = LOOKS.format(**values, port=server.getsockname()[1])
        # the kernel's and the ranks' processes look; both hand on what they have seen
        give = "import os\nif seen: os._exit(1)"
        hand_in(folder, "looks", look + give, SET_UP, "%%ranks\n" + look + give, answer())
        row = graded(folder)["looks"]
    assert (row.status, row.passed) == ("graded", 1), row


def test_trusted_submissions_run_without_bubblewrap_and_end_nobody_else(tmp_path, monkeypatch):
    """As the same user, who may be root: no other process of theirs is ended with the kernel's."""
    monkeypatch.setattr(grades, "available", lambda: False)
    folder = tmp_path / "handed_in"
    folder.mkdir()
    hand_in(folder, "honest", SET_UP, answer())
    with subprocess.Popen(["sleep", "600"]) as other:
        rows = grade(folder, tmp_path / "g.csv", LIMITS, trust=True, tell=lambda row: None)
        assert other.poll() is None
        other.kill()
    assert (rows[0].status, rows[0].passed) == ("graded", 1), rows


def test_every_file_is_a_row(tmp_path, monkeypatch):
    folder = tmp_path / "handed_in"
    (folder / "group one").mkdir(parents=True)
    (folder / "empty.ipynb").touch()
    (folder / "=cmd|' C calc'!A0.ipynb").write_text("{}")
    (folder / "bytes.ipynb").write_bytes(os.urandom(1000))
    (folder / "deep.ipynb").write_text("[" * 200_000)
    (folder / "report.pdf").write_bytes(b"%PDF")
    (folder / "link.ipynb").symlink_to("/etc/passwd")
    os.mkfifo(folder / "waits.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=[]), folder / "group one" / "nothing.ipynb")
    rows = grade(folder, tmp_path / "g.csv", LIMITS, trust=False, tell=lambda row: None)
    status = {row.submission: row.status for row in rows}
    assert status.pop("group one/nothing.ipynb") == "no exercise"
    assert len(status) == 7 and set(status.values()) == {"not a notebook"}, rows
    with (tmp_path / "g.csv").open(encoding="utf-8-sig") as file:
        table = list(csv.reader(file))
    assert len(table) == 9 and all(not row[0].startswith("=") for row in table)


def test_a_limit_keeps_what_was_judged_before_it(tmp_path):
    """And a hang is interrupted: the cells after it run."""
    row = Row("a", "graded", exercises={"00.b": (1, 2)})
    write([row, Row("b", "time", exercises={"00.a": (0, 3)})], tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text(encoding="utf-8-sig").splitlines()
    assert lines[0] == "submission,lesson,status,passed,of,seconds,00.a,00.b,note"
    assert lines[1:] == ["a,,graded,0,1,0,,1/2,", "b,,time,0,1,0,0/3,,"]


def test_it_refuses_in_words(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is no folder"):
        grade(tmp_path / "no", tmp_path / "g.csv", LIMITS, trust=False, tell=print)
    with pytest.raises(ValueError, match="holds no file"):
        grade(tmp_path, tmp_path / "g.csv", LIMITS, trust=False, tell=print)
    (tmp_path / "a.ipynb").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        grade(tmp_path, tmp_path / "no" / "g.csv", LIMITS, trust=False, tell=print)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="--trust"):
        grade(tmp_path, tmp_path / "g.csv", LIMITS, trust=False, tell=print)


def test_the_command(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.ipynb").write_text("no")
    command = [sys.executable, "-m", "dlcourse.cli", "grade", "in", "--minutes"]
    done = subprocess.run([*command, "1"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "not a notebook" in done.stdout, done
    assert (tmp_path / "grades.csv").is_file()
    done = subprocess.run([*command, "0"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "minutes=0" in done.stderr
