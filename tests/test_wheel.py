"""The course installed as a wheel, beside no repository: lessons are copied, never over changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from dlcourse.course import catalog
from dlcourse.course.learner_copy import copy_lessons

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
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib"))
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
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(catalog.LESSONS)
    claims = run(installed, tmp_path, "dlcourse", "claims", "--lang", "en")
    assert claims.stdout.startswith("A1  "), claims.stderr
    done = run(installed, tmp_path, "dlcourse", "run", "00", "--lang", "en", "--no-progress")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results"]
    built = run(installed, tmp_path, "dlcourse", "build")
    assert built.returncode == 2 and "in the course's repository" in built.stderr
    assert state(packages) == before


CHECK = """\
import dlcourse
from dlcourse import check, lesson, Ranks
print(dlcourse.__file__)
lesson("00", lang="en")
{code}
"""


def test_an_exercise_is_checked_from_an_empty_folder(installed, tmp_path):
    code = "\n".join(
        [
            "import dlcourse",
            "from dlcourse import check, solution",
            "from dlcourse.course.exercises import registry",
            "names = registry.exercise_names() if hasattr(registry, 'exercise_names') else []",
            "print(dlcourse.__file__, names)",
        ]
    )
    done = run(installed, tmp_path, "python", "-c", code)
    assert done.returncode == 0, done.stderr
