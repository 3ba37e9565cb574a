"""The files that set the course up agree with each other, and bring no GPU packages."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
# What README promises, in its oldest patches: Debian 12's own Python is 3.11.2.
PYTHONS = ("3.11.0", "3.12.0", "3.13.0")


GPU = re.compile(r"nvidia|cuda|triton")


def pinned(environment: dict[str, str] | None = None) -> dict[str, str]:
    """Versions by name, as pip reads constraints.txt in an environment (default: this one)."""
    read = [Requirement(line) for line in LINES]
    return {
        canonicalize_name(r.name): str(next(iter(r.specifier)).version)
        for r in read
        if r.marker is None or r.marker.evaluate(environment)
    }


PINS = pinned()


def test_each_package_is_pinned_once_and_exactly():
    read = [Requirement(line) for line in LINES]
    assert all([s.operator for s in r.specifier] == ["=="] for r in read)
    names = [canonicalize_name(r.name) for r in read]
    assert not [name for name in names if names.count(name) > 1]


@pytest.mark.parametrize("system", ["Linux", "Darwin"])
@pytest.mark.parametrize("python", PYTHONS)
def test_the_pins_are_whole_and_right_for_every_python_that_is_promised(python, system):
    """Follow what is installed from requirement to requirement, as pip would on that Python.

    Each package is pinned, within what others ask of it, and takes that Python. This holds on
    the tests' own newer Python too, where pip itself never meets a pin's limit.
    """
    environment = {
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "sys_platform": system.lower(),
        "platform_system": system,
        "platform_machine": "arm64" if system == "Darwin" else "x86_64",
    }
    pins = pinned(environment)
    of_the_course = [*PROJECT["dependencies"]]
    of_the_course += [r for group in PROJECT["optional-dependencies"].values() for r in group]
    todo = [("dlcourse", "", of_the_course)]
    seen: set[tuple[str, str]] = set()
    judged: set[str] = set()  # packages that are here in the very version of their pin
    wrong: set[str] = set()
    while todo:
        owner, extra, requirements = todo.pop()
        for text in requirements:
            asked = Requirement(text)
            if asked.marker and not asked.marker.evaluate({**environment, "extra": extra}):
                continue
            name = canonicalize_name(asked.name)
            if GPU.match(name):
                continue  # a torch made for GPUs names the exact version of each itself
            if name not in pins:
                wrong.add(f"{asked} (of {owner}) is not in constraints.txt")
                continue
            if Version(pins[name]) not in asked.specifier:
                wrong.add(f"{asked} (of {owner}) is pinned to {pins[name]}")
            for more in {"", *asked.extras}:
                if (name, more) not in seen:
                    seen.add((name, more))
                    todo.append((name, more, _requirements(name)))
            if _version(name) == pins[name]:
                judged.add(name)
                takes = metadata.metadata(name).get("Requires-Python") or ""
                if Version(python) not in SpecifierSet(takes):
                    wrong.add(f"{name} {pins[name]} needs Python {takes}, not {python}")
    assert not wrong, "\n".join(sorted(wrong))
    assert len(judged) > 100


def _version(name: str) -> str | None:
    try:
        return Version(metadata.version(name)).public
    except metadata.PackageNotFoundError:  # one for another system or Python: only its pin is seen
        return None


def _requirements(name: str) -> list[str]:
    return [] if _version(name) is None else metadata.requires(name) or []


def test_no_gpu_packages_and_no_local_versions():
    assert not [name for name in PINS if GPU.match(name)]
    assert not [line for line in LINES if "+" in line]


@pytest.mark.parametrize("file", ["environment.yml", "binder/environment.yml"])
def test_conda_files_name_the_pinned_torch(file):
    dependencies = yaml.safe_load((ROOT / file).read_text())["dependencies"]
    assert f"pytorch-cpu={PINS['torch']}" in dependencies
    python = next(d for d in dependencies if str(d).startswith("python="))
    assert Version(python.split("=")[1]) in Requirement("x" + PROJECT["requires-python"]).specifier


def test_all_ways_install_the_same_extra():
    commands = [
        (ROOT / file).read_text() for file in ("Makefile", "environment.yml", "binder/postBuild")
    ]
    assert all("constraints.txt" in c and ".[lab]" in c for c in commands)


def test_scripts_can_run():
    for file in (".ci/run", "binder/postBuild", "binder/start"):
        assert os.access(ROOT / file, os.X_OK), f"{file} is not executable"
        subprocess.run(["bash", "-n", ROOT / file], check=True)


def test_binder_gives_each_rank_one_thread():
    shown = subprocess.run(
        [ROOT / "binder" / "start", "sh", "-c", "echo $OMP_NUM_THREADS"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == "1"


def test_no_file_says_where_packages_come_from():
    hosts = re.compile(r"https?://\S*(/simple\b|/packages/|\.whl\b)")
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in files:
        if name.endswith((".png", ".ipynb")) or name == "tests/test_setup.py":
            continue
        assert not hosts.search((ROOT / name).read_text(errors="ignore")), name


@pytest.mark.parametrize(
    ("python", "said"),
    [
        (None, "does not run here"),
        ("exit 127", "does not run here"),  # a shim without the version behind it
        ('case "$2" in *version_info*) exit 1;; esac', "dlcourse needs Python 3.11 or newer"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "has no venv"),
    ],
)
def test_make_says_in_a_sentence_why_a_python_will_not_do(python, said, tmp_path):
    done = _make(tmp_path, python)
    assert done.returncode and said in done.stdout and done.stdout.count("\n") == 1
    assert "make PYTHON=python3.12" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_an_environment_that_was_only_half_made_is_made_again(tmp_path):
    half = "mkdir -p .venv/bin && touch .venv/bin/python && exit 1"
    assert _make(tmp_path, f'case "$2" in venv) {half};; esac').returncode
    assert not (tmp_path / ".venv/bin/python").exists()


def _make(folder: Path, python: str | None) -> subprocess.CompletedProcess[str]:
    """``make lab`` in an otherwise empty folder, with a shell script for a Python."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_text((ROOT / name).read_text())
    given = folder / "given"
    if python is not None:
        given.write_text(f"#!/bin/sh\n{python}\n")
        given.chmod(0o755)
    command = ["env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "make", "lab", f"PYTHON={given}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
