"""The course installed as a wheel, beside no repository: lessons are copied, never over changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dlcourse.corpus import KindsCorpus
from dlcourse.course import catalog
from dlcourse.course.learner_copy import Copied, copy_lessons

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, made from a copy: a build leaves files beside what it builds."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("dlcourse", "notebooks", "data"):
        shutil.copytree(ROOT / folder, source / folder, ignore=NOT_OURS)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / file, source)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    return next(source.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel; all that it requires is seen in the tests' own."""
    environment = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = next((environment / "lib").iterdir()) / "site-packages"
    command = ["-m", "pip", "--python", environment / "bin/python", "install", "--no-deps"]
    subprocess.run([sys.executable, *command, "--quiet", "--no-index", wheel], check=True)
    here = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (packages / "tests.pth").write_text("\n".join(here))
    return environment


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A program of the environment, in a folder that knows nothing of the repository."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DLCOURSE_ROOT")}
    return subprocess.run(
        [installed / "bin" / command[0], *command[1:]],
        cwd=folder,
        env={**kept, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )


def state(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its content's hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel_carries_all_that_is_in_the_repository(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(
        ["git", "ls-files", "-z", "dlcourse", "notebooks", "data"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    tracked = [name for name in listed.split("\0") if name and (ROOT / name).exists()]
    inside = {n if n.startswith("dlcourse/") else f"dlcourse/_course/{n}" for n in tracked}
    assert len(inside) > 200 and not inside - names
    assert not [n for n in names if "__pycache__" in n or "checkpoints/" in n]


def test_the_commands_work_from_an_empty_folder_and_write_into_no_package(installed, tmp_path):
    packages = next((installed / "lib").iterdir()) / "site-packages" / "dlcourse"
    before = state(packages)
    listed = run(installed, tmp_path, "dlcourse", "lessons", "--lang", "en")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == catalog.all_lessons(
        catalog.course_root()
    )
    claims = run(installed, tmp_path, "dlcourse", "claims", "--lang", "en")
    assert claims.stdout.startswith("A1  "), claims.stderr
    done = run(installed, tmp_path, "dlcourse", "run", "00", "--lang", "en", "--no-progress")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results"]
    built = run(installed, tmp_path, "dlcourse", "build")
    assert built.returncode == 2 and "in the course's repository" in built.stderr
    assert state(packages) == before


def test_the_wheel_has_the_text_to_train_on(installed, tmp_path):
    code = "from dlcourse.corpus import KindsCorpus; print(KindsCorpus().train_bytes)"
    said = run(installed, tmp_path, "python", "-c", code)
    assert said.stdout.strip() == str(KindsCorpus().train_bytes), said.stderr


CHECK = """
import dlcourse
from dlcourse import Ranks, check
from dlcourse.course.exercises import find_exercise

print(dlcourse.__file__)
with Ranks(2) as ranks:
    for source in (find_exercise("00.rank_sum").solution, "rank_sum = lambda *_: -1"):
        ranks.cell(source)
        print(check("00.rank_sum").passed)
"""


def test_an_exercise_is_checked_from_an_empty_folder(installed, tmp_path):
    done = run(installed, tmp_path, "python", "-c", CHECK)
    assert done.returncode == 0, done.stderr
    home, *passed = [x for x in done.stdout.splitlines() if x in ("True", "False") or "/" in x]
    assert home.startswith(str(installed)) and passed == ["True", "False"]


LAB = """
import os, sys
from dlcourse.cli import main
os.execve = lambda program, command, environment: print(*command)
sys.exit(main(["lab", "--lang", "en"]))
"""


def test_lab_opens_on_copies_in_the_current_folder(installed, tmp_path):
    help = run(installed, tmp_path, "dlcourse", "lab", "--help")
    assert help.returncode == 0 and not [*tmp_path.iterdir()]
    done = run(installed, tmp_path, "python", "-c", LAB)
    assert done.returncode == 0, done.stderr
    root = catalog.course_root()
    files = [f for lang in catalog.LANGUAGES for f in (root / "notebooks" / lang).glob("*.*")]
    assert f"{len(files)} notebook files were copied into {tmp_path}/notebooks." in done.stdout
    assert f"--ServerApp.root_dir={tmp_path}" in done.stdout
    page = done.stdout.partition("--LabApp.default_url=/lab/tree/")[2].split()[0]
    assert (tmp_path / page).read_text(encoding="utf-8").startswith("# ")
    copies = state(tmp_path / "notebooks")
    assert copies == state(tmp_path / "notebooks") and len(copies) == len(files) + 1
    mine = tmp_path / "notebooks/en/00_start.ipynb"
    mine.write_text("mine")
    again = run(installed, tmp_path, "python", "-c", LAB)
    assert again.returncode == 0 and "notebook files" not in again.stdout
    assert mine.read_text() == "mine" and "00_start" not in again.stdout  # no newer one to tell of


@pytest.fixture
def course(tmp_path) -> Path:
    """A small course whose files the tests make newer."""
    for lang in catalog.LANGUAGES:
        (tmp_path / "course/notebooks" / lang).mkdir(parents=True)
        for name in ("00_start.ipynb", "index.md"):
            (tmp_path / "course/notebooks" / lang / name).write_text(f"first {lang}")
    return tmp_path / "course"


def test_a_newer_version_comes_and_what_the_learner_changed_stays(course, tmp_path):
    mine = tmp_path / "mine"
    assert len(copy_lessons(course, mine).new) == 4
    changed, untouched = mine / "notebooks/ko/00_start.ipynb", mine / "notebooks/en/00_start.ipynb"
    changed.write_text("changed")
    assert copy_lessons(course, mine) == Copied([], [])
    for lang in catalog.LANGUAGES:
        (course / "notebooks" / lang / "00_start.ipynb").write_text(f"second {lang}")
    done = copy_lessons(course, mine)
    assert done.new == [Path("notebooks/en/00_start.ipynb")]
    assert done.kept == [Path("notebooks/ko/00_start.ipynb")]
    assert (changed.read_text(), untouched.read_text()) == ("changed", "second en")
    assert copy_lessons(course, mine) == Copied([], [])  # said once
    changed.rename(changed.with_name("00_mine.ipynb"))  # the way to have both
    assert copy_lessons(course, mine).new == [Path("notebooks/ko/00_start.ipynb")]
    assert changed.read_text() == "second ko"


def test_files_of_the_same_names_that_the_course_did_not_copy_are_kept(course, tmp_path):
    mine = tmp_path / "mine/notebooks/ko"
    mine.mkdir(parents=True)
    (mine / "index.md").write_text("my own start page")
    done = copy_lessons(course, tmp_path / "mine")
    assert done.kept == [Path("notebooks/ko/index.md")] and len(done.new) == 3
    (mine.parent / ".dlcourse.json").write_text("{broken")
    (mine / "00_start.ipynb").write_text("changed")
    assert copy_lessons(course, tmp_path / "mine").new == []
    assert (mine / "index.md").read_text() == "my own start page"
    assert (mine / "00_start.ipynb").read_text() == "changed"


def test_a_full_disk_leaves_no_half_of_a_lesson(course, tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> int:
        path.open("wb").write(content[:3])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(Path, "write_bytes", full)
        copy_lessons(course, tmp_path / "mine")
    done = copy_lessons(course, tmp_path / "mine")
    assert len(done.new) == 4 and not done.kept
