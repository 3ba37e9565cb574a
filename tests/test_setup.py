"""The files that set the course up agree with each other, and bring no GPU packages."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from conftest import MARKERS
from flaky_index import index, write_wheel
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import dlcourse

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("install", ROOT / "install.py")
install = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(install)
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


def _declared(*groups: str) -> dict[str, str]:
    """What pyproject.toml asks for, by name as registries write it: the course's, or of extras."""
    lists = [PROJECT["optional-dependencies"][g] for g in groups] or [PROJECT["dependencies"]]
    return {canonicalize_name(Requirement(r).name): r for group in lists for r in group}


# `make quick` is without
PEERS = {
    "deepspeed": ["deepspeed"],
    "megatron": ["megatron-core"],
    "accelerate": ["accelerate"],
    "horovod": ["horovod"],
}
# No index has it for a torch of today: dlcourse/peers/horovod_wheel.py builds it
BY_HAND = {"horovod"}


def _imported(folder: str) -> dict[str, set[str]]:
    """Distributions that a folder's Python files import, by name, with the files that do."""
    homes = metadata.packages_distributions()
    declared = {*_declared(), *_declared("test", "peers"), *BY_HAND}
    files = sorted((ROOT / folder).rglob("*.py"))
    own = {"dlcourse", *(path.stem for path in [*files, *(ROOT / "docs").glob("*.py")])}
    found: dict[str, set[str]] = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - own:
                given = homes.get(top) or PEERS.get(top, [f"(not installed: {top})"])
                names = {canonicalize_name(distribution) for distribution in given}
                for name in names & declared or names:  # mlx comes in two parts, one of them named
                    found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def test_what_is_imported_is_declared():
    course = _imported("dlcourse")
    assert course.pop("submitit") == {"dlcourse/course/submit.py"}, "only who submits needs it"
    peers = {p for p in course if p in _declared("peers") or p in BY_HAND}
    assert not {p: files for p, files in course.items() if p not in _declared() and p not in peers}
    outside = {f for p in peers for f in course[p] if not f.startswith("dlcourse/peers/")}
    assert not outside, "only dlcourse/peers may want what is not always installed"
    known = {*_declared(), *_declared("test", "peers"), *BY_HAND}
    assert not {p: files for p, files in _imported("tests").items() if p not in known}
    known |= {*_declared("site")}
    assert not {p: files for p, files in _imported("docs").items() if p not in known}


# Declared and not imported: each is started as a program, or by a program of the same name.
PROGRAMS = {
    "mpich",
    "jupyterlab",
    "notebook",
    "ruff",
    "mypy",
    "nbval",
    "pip-audit",
    "pytest-timeout",
    "pytest-xdist",
}
# anywidget stands on it, and lessons use what a cell may import.
FOR_CELLS = {"ipywidgets"}
BUILD = {"setuptools"}  # makes the wheel of tests/test_wheel.py


def test_what_is_declared_is_used():
    course, tests = _imported("dlcourse"), _imported("tests")
    assert {*_declared(), *_declared("peers", "cluster")} - {*course} <= PROGRAMS | FOR_CELLS
    assert {*_declared("test")} - {*tests} <= PROGRAMS | BUILD
    text = {p: p.read_text() for p in (ROOT / "Makefile", ROOT / "pyproject.toml")}
    assert "jupyterlab" in (ROOT / "dlcourse/cli.py").read_text()
    for program in ("ruff check", "mypy", "pytest -n"):
        assert program in text[ROOT / "Makefile"]
    assert "\ntimeout = " in text[ROOT / "pyproject.toml"]
    assert "--nbval" in (ROOT / "tests/test_notebooks.py").read_text()


def test_the_version_stands_in_one_place():
    assert PROJECT["dynamic"] == ["version"]
    package = (ROOT / "dlcourse/__init__.py").read_text()
    assert f'\n__version__ = "{dlcourse.__version__}"\n' in package


def test_no_gpu_packages_and_no_local_versions():
    assert not [name for name in PINS if GPU.match(name)]
    assert not [line for line in LINES if "+" in line]


@pytest.mark.parametrize("file", ["environment.yml", "binder/environment.yml"])
def test_conda_files_name_the_pinned_torch(file):
    dependencies = yaml.safe_load((ROOT / file).read_text())["dependencies"]
    assert f"pytorch-cpu={PINS['torch']}" in dependencies
    python = next(d for d in dependencies if str(d).startswith("python="))
    assert Version(python.split("=")[1]) in Requirement("x" + PROJECT["requires-python"]).specifier


def test_all_ways_install_the_same_under_the_pins(monkeypatch):
    for file in ("environment.yml", "binder/postBuild"):
        text = (ROOT / file).read_text()
        assert "-c constraints.txt" in text and re.search(r"-e \.$", text, re.M), file
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "_pip", lambda *arguments: calls.append(arguments) or 0)
    monkeypatch.setattr(install, "choose_torch", lambda given: ([], False, ""))
    assert install.main([]) == install.main(["test", "peers"]) == 0
    pins = ("-c", str(ROOT / "constraints.txt"))
    assert all(pins == call[(at := call.index("-c")) : at + 2] for call in calls)
    assert [c[c.index("-e") + 1] for c in calls if "-e" in c] == [str(ROOT), f"{ROOT}[test,peers]"]


def test_only_make_test_brings_the_peers(tmp_path):
    def installs(target: str) -> list[str]:
        said = subprocess.run(
            ["env", "-u", "MAKEFLAGS", "make", "-n", target, f"VENV={tmp_path}/none"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        ).stdout
        return re.findall(r"install\.py\b(.*)", said)

    assert installs("lab") == [""]
    assert installs("quick") == [" test"]
    assert " test peers cluster hub site" in installs("test")


def test_make_on_windows_says_what_works(tmp_path):
    done = _make(tmp_path, None, "OS=Windows_NT")
    assert done.returncode and done.stdout == ""
    assert "On Windows it runs in WSL2" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("system", "gpu", "given", "offered", "by_uv", "said"),
    [
        ("Linux", False, "", True, False, "CPU build, about 0.3 GB"),
        (
            "Linux",
            False,
            "",
            False,
            True,
            "0.3 GB (less where pip has kept some, or torch is here), ",
        ),
        ("Linux", True, "", True, False, "torch with CUDA, about 2.8 GB"),
        ("Linux", True, "file:///cpu", True, False, "file:///cpu: about 0.3 GB"),
        ("Linux", False, "file:///x", True, False, "about 0.3 GB to 2.8 GB"),
        ("Darwin", False, "", False, False, "about 0.3 GB"),
    ],
)
def test_torchs_build_is_chosen_by_the_machine(
    system, gpu, given, offered, by_uv, said, monkeypatch
):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr(install, "has_gpu", lambda: gpu)
    monkeypatch.setattr(install, "offers_cpu_build", lambda: offered)
    options, chosen, told = install.choose_torch(given)
    assert options == (["--extra-index-url", given] if given else []) and chosen is by_uv
    assert said in told and told.count("\n") == 0


def test_uv_brings_the_pinned_torch_without_cuda(monkeypatch):
    calls: list[list[str]] = []
    monkeypatch.setattr(install, "_pip", lambda *arguments: 0)
    monkeypatch.setattr(
        "subprocess.run", lambda c, **_: calls.append(c) or subprocess.CompletedProcess(c, 0)
    )
    assert install._cpu_torch_by_uv() == 0
    [command] = calls
    assert command[:5] == [sys.executable, "-m", "uv", "pip", "install"]
    assert "--torch-backend=cpu" in command and "--no-deps" in command
    assert command[-1] == re.search(r"(?m)^torch==\S+", (ROOT / "constraints.txt").read_text())[0]


@pytest.mark.parametrize(
    ("file", "pythons", "sizes"),
    [
        ("README.md", "Python 3.11, 3.12 or 3.13", "downloads about {}, with one {} (torch with"),
        ("README.ko.md", "Python 3.11, 3.12, 3.13 가운데", "없으면 약 {}, 있으면 {}(CUDA용 torch)"),
    ],
)
def test_the_readme_says_what_make_does(file, pythons, sizes):
    text = re.sub(r"\s+", " ", (ROOT / file).read_text(encoding="utf-8"))
    parts = ["make lab", "make quick", "make test", "install.py peers", "WSL2", "TORCH_INDEX"]
    assert not [part for part in parts if part not in text]
    assert pythons in text and PYTHONS == ("3.11.0", "3.12.0", "3.13.0")
    between = "" if ".ko" in file else " "
    known = [size.replace(" ", between) for size in (install.CPU_SIZE, install.CUDA_SIZE)]
    assert sizes.format(*known) in text


def test_make_quick_leaves_out_the_markers_that_are_declared(pytestconfig):
    declared = [line.partition(":")[0] for line in pytestconfig.getini("markers")]
    left_out = re.search(r"(?m)^SLOW = (.*)$", (ROOT / "Makefile").read_text())[1].split(" or ")
    assert set(left_out) <= set(declared) and set(MARKERS) <= set(left_out)
    files = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert not {name for names in MARKERS.values() for name in names} - files


@pytest.fixture
def empty_course(tmp_path, monkeypatch) -> Path:
    """A folder with `install.py`, two pins and an environment that holds pip and setuptools."""
    folder = tmp_path / "course"
    folder.mkdir()
    shutil.copy(ROOT / "install.py", folder)
    (folder / "constraints.txt").write_text(f"torch==2.13.0\npip=={metadata.version('pip')}\n")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "course"\nversion = "1"\ndependencies = ["torch"]\n'
        "[tool.setuptools]\npy-modules = []\n"
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    packages = next((folder / ".venv/lib").iterdir()) / "site-packages"
    for name in ("pip", "setuptools"):
        for file in metadata.files(name) or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), packages / file)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way to say: without
    monkeypatch.setenv("PATH", "")  # no GPU, whatever the machine
    return folder


def _install(course: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [course / ".venv/bin/python", "install.py"],
        env={**os.environ, **environment},
        cwd=course,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one build of torch")
def test_a_laptop_without_a_gpu_gets_the_cpu_build_over_a_broken_connection(empty_course, tmp_path):
    wheels = [
        write_wheel(tmp_path, "torch", "2.13.0", needs="nvidia_cublas"),
        write_wheel(tmp_path, "torch", "2.13.0+cpu", size=2_000_000),
        write_wheel(tmp_path, "nvidia_cublas", "1"),
    ]
    with index(wheels, breaks=3) as (address, sent):
        done = _install(empty_course, PIP_INDEX_URL=address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("No NVIDIA GPU is here: torch's CPU build, about 0.3 GB")
    first = [start for name, start in sent if start or "+cpu" in name]
    assert {name for name, _ in sent} == {"torch-2.13.0+cpu-py3-none-any.whl"}
    assert len(first) == 4 and first == sorted(first) and first[1] > 500_000  # each goes on


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one build of torch")
def test_an_index_without_the_cpu_build_and_a_broken_line_are_said(empty_course, tmp_path):
    wheels = [
        write_wheel(tmp_path, "torch", "2.13.0", needs="nvidia_cublas", size=2_000_000),
        write_wheel(tmp_path, "nvidia_cublas", "1"),
    ]
    patched = (empty_course / "install.py").read_text().replace('"20"', '"1"')
    (empty_course / "install.py").write_text(patched)
    with index(wheels, breaks=9) as (address, _):
        done = _install(empty_course, PIP_INDEX_URL=address, PIP_RETRIES="0")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].endswith("from PyTorch's own index.")
    assert lines[1].startswith(
        "PyTorch's own index is not reached from here, so torch's CUDA build"
    )
    assert "About 2.8 GB" in lines[1]  # uv is not on this index
    assert lines[-1] == "Not installed. The same command again goes on with what has come whole."


@pytest.mark.parametrize(("answer", "here"), [("exit 0", True), ("exit 9", False), (None, False)])
def test_a_gpu_is_one_whose_driver_answers(answer, here, tmp_path, monkeypatch):
    if answer:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.has_gpu() is here


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
        ('case "$2" in *"< (3, 11)"*) exit 1;; esac', "dlcourse needs Python 3.11 or newer"),
        ('case "$2" in *">= (3, 14)"*) exit 1;; esac', "is tested on Python 3.11 to 3.13"),
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


def _make(folder: Path, python: str | None, *more: str) -> subprocess.CompletedProcess[str]:
    """``make lab`` in an otherwise empty folder, with a shell script for a Python."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "install.py"):
        (folder / name).write_text((ROOT / name).read_text())
    given = folder / "given"
    if python is not None:
        given.write_text(f"#!/bin/sh\n{python}\n")
        given.chmod(0o755)
    command = ["env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "make", "lab", f"PYTHON={given}", *more]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
