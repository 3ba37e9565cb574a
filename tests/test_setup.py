"""The files that set the course up agree with each other, and bring no GPU packages."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().lower().splitlines()
    if "==" in line
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_is_pinned_within_its_range():
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    pins = {normal(name): version for name, version in PINS.items()}
    for text in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(text)
        pin = pins.get(normal(requirement.name))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert Version(pin) in requirement.specifier, f"{requirement.name} {pin}"


def test_no_gpu_packages_and_no_local_versions():
    assert not [name for name in PINS if name.startswith(("nvidia", "triton", "cuda"))]
    assert not [v for v in PINS.values() if "+" in v]


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
