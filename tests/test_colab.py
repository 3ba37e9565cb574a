"""Lessons on Google Colab, imitated: its versions and its module, a kernel, no JupyterLab.

Never run on Colab itself. The versions are those of pip-freeze.gpu.txt in googlecolab/backend-info
at 4647a1d (February 2026). Torch and what it stands on are not downloaded: they are the tests', by
links, so a whole lesson runs on the tests' own Python. Colab has 3.12: where that is on the machine
too, all that needs no torch runs on it.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from packaging.requirements import Requirement

from dlcourse.course import catalog, colab
from dlcourse.panel.widget import VIEW

ROOT = Path(__file__).resolve().parents[1]
LESSON = "00_start"
# What a kernel with widgets and figures needs; without jedi, which Colab leaves out, too.
VERSIONS = """
anywidget==0.9.21 attrs==25.4.0 backcall==0.2.0 cloudpickle==3.1.2 decorator==4.4.2
entrypoints==0.4 fastjsonschema==2.21.2 ipykernel==6.17.1 ipython==7.34.0 ipython-genutils==0.2.0
ipywidgets==7.7.1 jsonschema==4.26.0 jsonschema-specifications==2025.9.1 jupyter_client==7.4.9
jupyter_core==5.9.1 matplotlib-inline==0.2.1 nbformat==5.10.4 nest-asyncio==1.6.0 packaging==26.0
parso==0.8.6 pexpect==4.9.0 pickleshare==0.7.5 pip==24.1.2 platformdirs==4.9.2 plotly==5.24.1
prompt_toolkit==3.0.52 psutil==5.9.5 psygnal==0.15.1 ptyprocess==0.7.0 Pygments==2.19.2
python-dateutil==2.9.0.post0 pyzmq==26.2.1 referencing==0.37.0 rpds-py==0.30.0 setuptools==75.2.0
six==1.17.0 tenacity==9.1.4 tornado==6.5.1 traitlets==5.7.1 typing_extensions==4.15.0 wcwidth==0.6.0
"""
OLD_TORCH = "2.10.0+cu128"  # that list's
# google.colab's part for widgets, as far as anywidget and the course meet it: what is displayed
# gets the address of the widget manager, the value of a cell does not
# (google/colab/output/_widgets.py, googlecolab/colabtools at 24e3a7a).
STAND_IN = {
    "__init__.py": "from google.colab import output",
    "output/__init__.py": "from google.colab.output._widgets import enable_custom_widget_manager",
    "output/_widgets.py": f"""
from IPython import get_ipython

_installed_url = None


def enable_custom_widget_manager():
    global _installed_url
    if _installed_url is None:
        get_ipython().display_pub.register_hook(_with_manager)
    _installed_url = "https://manager.invalid/manager.js"


def _with_manager(message):
    content = message["content"]
    if {VIEW!r} in content.get("data", {{}}):
        manager = {{"custom_widget_manager": {{"url": _installed_url}}}}
        content["metadata"].setdefault({VIEW!r}, {{}})["colab"] = manager
    return message
""",
}
NOT_OURS = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.egg-info")


def python_312() -> str | None:
    """A Python 3.12 that runs; what pyenv puts into the path may only say that it cannot."""
    found = [shutil.which("python3.12"), *Path.home().glob(".pyenv/versions/3.12.*/bin/python3.12")]
    for python in filter(None, [sys.executable, *found]):
        ask = [python, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"]
        done = subprocess.run(ask, capture_output=True, text=True)
        if done.stdout.split() == ["3", "12"]:
            return str(python)
    return None


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, str]:
    """The working tree in place of the repository on GitHub, for git in every process."""
    source = tmp_path_factory.mktemp("github")
    for folder in ("dlcourse", "notebooks", "data"):
        shutil.copytree(ROOT / folder, source / folder, ignore=NOT_OURS)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / file, source)
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{source.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": colab.REPOSITORY,
    }


class Colab:
    """An environment with Colab's packages, and kernels in it."""

    def __init__(self, folder: Path, python: str, published: dict[str, str]) -> None:
        self.folder, self.published = folder / "environment", published
        subprocess.run([python, "-m", "venv", "--without-pip", self.folder], check=True)
        self.python = self.folder / "bin" / "python"
        self.packages = next((self.folder / "lib").iterdir()) / "site-packages"
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--no-compile", *VERSIONS.split()], check=True)
        for name, text in STAND_IN.items():
            file = self.packages / "google" / "colab" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        start = "--IPKernelApp.exec_lines=import google.colab"
        argv = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}", start]
        spec = folder / "kernels" / "colab" / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
        self.kernels = KernelSpecManager(kernel_dirs=[str(spec.parents[1])])
        self.content = folder / "content"
        self.content.mkdir()

    def link_torch(self) -> None:
        """The tests' torch, and all that it requires and the list above has not."""
        have, wanted = {name_of(pin) for pin in VERSIONS.split()}, ["torch", "numpy"]
        while wanted:
            found = importlib.metadata.distribution(wanted.pop())
            tops = {file.parts[0] for file in found.files or [] if file.parts[0] != ".."}
            for top in tops - {"__pycache__"}:
                (self.packages / top).symlink_to(found.locate_file(top))
            have.add(name_of(found.name))
            asked = map(Requirement, found.requires or [])
            named = {name_of(r.name) for r in asked if r.marker is None or r.marker.evaluate()}
            wanted += sorted(named - have - set(wanted))

    def fake_torch(self, version: str) -> None:
        """Something that is installed as torch and computes nothing."""
        (self.packages / "torch.py").write_text("")
        about = self.packages / f"torch-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")

    def versions(self) -> dict[str, str]:
        code = "from importlib.metadata import distributions as all\n"
        code += "print({d.name: d.version for d in all()})"
        done = subprocess.run(
            [self.python, "-P", "-c", code], capture_output=True, check=True, text=True
        )
        return ast.literal_eval(done.stdout)

    def run(self, cells: list[str]) -> list[list[dict[str, Any]]]:
        """What cells put out in a fresh kernel, each without an error."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DLCOURSE_"))}
        kept["DLCOURSE_LEARNER"] = str(self.content / "learner")
        manager = KernelManager(kernel_name="colab", kernel_spec_manager=self.kernels)
        manager.start_kernel(cwd=str(self.content), env=kept | self.published)
        client = manager.client()
        client.start_channels()
        outputs: list[list[dict[str, Any]]] = []
        try:
            client.wait_for_ready(timeout=120)
            for cell in cells:
                outputs.append([])
                hook = outputs[-1].append
                reply = client.execute_interactive(cell, output_hook=hook, timeout=300)
                assert reply["content"]["status"] == "ok", (cell, texts(outputs[-1:]))
        finally:
            client.stop_channels()
            manager.shutdown_kernel()
        return outputs


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", requirement.split("==")[0]).lower()


def texts(outputs: list[list[dict[str, Any]]]) -> str:
    """All that was written, whatever the kind of message."""
    lines: list[str] = []
    for message in (m["content"] for output in outputs for m in output):
        said = [message.get("text", ""), *message.get("traceback", ())]
        lines += [*said, *map(str, message.get("data", {}).values())]
    return "\n".join(lines)


def shown(output: list[dict[str, Any]], mime: str) -> list[dict[str, Any]]:
    """The contents of a cell's messages that show something of this type."""
    contents = [message["content"] for message in output]
    return [content for content in contents if mime in content.get("data", {})]


def cells_of(lang: str) -> list[str]:
    notebook = nbformat.read(catalog.notebook_path(ROOT, lang, LESSON), as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def here(published, tmp_path_factory) -> Colab:
    """Colab but for its Python, which is the tests' own, as torch is."""
    made = Colab(tmp_path_factory.mktemp("colab"), sys.executable, published)
    made.link_torch()
    return made


def test_a_lesson_installs_the_course_alone_and_runs_whole(here):
    before = here.versions()
    assert {name_of(name) for name in before} >= {"torch", "ipython", "ipykernel", "ipywidgets"}
    assert "dlcourse" not in before and "jupyterlab" not in before
    cells = cells_of("ko")
    outputs = here.run(cells)
    after = here.versions()
    assert after.pop("dlcourse") == importlib.metadata.version("dlcourse") and after == before
    by_cell = dict(zip(cells, outputs, strict=True))
    panel = next(output for cell, output in by_cell.items() if "Ranks(num_ranks" in cell)
    slider = next(output for cell, output in by_cell.items() if cell.startswith("explore("))
    asked = next(output for cell, output in by_cell.items() if cell.startswith("predict("))
    questions = by_cell["quiz()"]
    for output in (panel, slider, asked, questions):
        (view,) = shown(output, VIEW)
        manager = view["metadata"][VIEW]["colab"]["custom_widget_manager"]
        assert manager["url"].startswith("https://manager")
    assert shown(slider, "image/svg+xml")  # where the widget is not drawn
    assert "ranks 0-3: tensor(60.)" in texts(outputs)


def test_without_widgets_pictures_stand_still(here):
    """In the same environment, from which the widgets are taken."""
    cells = cells_of("ko")
    here.run(cells[:1])  # the course is there, also where this test runs alone
    pip = [sys.executable, "-m", "pip", "--python", here.python, "uninstall", "--quiet", "-y"]
    subprocess.run([*pip, "ipywidgets", "anywidget"], check=True)
    pool = next(i for i, cell in enumerate(cells) if "Ranks(num_ranks" in cell)
    by_kind = {
        kind: next(cell for cell in cells if cell.startswith(kind))
        for kind in ("predict(", "explore(", "quiz()")
    }
    *before, asked, slider, questions = here.run([*cells[: pool + 1], *by_kind.values()])
    assert not any(shown(output, VIEW) for output in (*before, asked, slider, questions))
    assert "Ranks(4, cpu, ready)" in texts(before[-1:])
    assert shown(asked, "text/plain") and shown(questions, "text/html")
    (picture,) = shown(slider, "image/svg+xml")
    assert picture["data"]["image/svg+xml"].startswith("<svg")


@pytest.fixture(scope="module")
def with_312(published, tmp_path_factory) -> Colab:
    """Colab's Python, where it is on this machine; its torch only by name."""
    python = python_312()
    if python is None:
        version = ".".join(map(str, sys.version_info[:2]))
        warnings.warn(f"no Python 3.12 here: Colab imitated with {version} alone", stacklevel=1)
    made = Colab(tmp_path_factory.mktemp("colab312"), python or sys.executable, published)
    made.fake_torch(OLD_TORCH)
    return made


def test_colabs_own_python_takes_the_course_and_an_older_torch_is_named_and_kept(with_312):
    cells = cells_of("ko")
    imports = next(cell for cell in cells if cell.startswith("from dlcourse import"))
    still = [cell for cell in cells if cell.startswith(("predict(", "explore(", "quiz()"))]
    before = with_312.versions()
    outputs = with_312.run([*cells[:2], imports, *still])
    after = with_312.versions()
    assert after.pop("dlcourse") and after == before and before["torch"] == OLD_TORCH
    (said,) = shown(outputs[2], "text/plain")
    assert f"torch {OLD_TORCH}" in said["data"]["text/plain"]
    assert all(shown(output, VIEW) for output in outputs[3:])


def test_what_is_asked_for_is_what_the_package_asks_for():
    required = map(Requirement, importlib.metadata.requires("dlcourse") or [])
    torch = next(r for r in required if r.name == "torch")
    assert str(torch.specifier) == ">=" + ".".join(map(str, colab.TORCH))


@pytest.mark.parametrize(
    ("version", "said"),
    [
        *(("2.10.0+cu128", True), ("2.9.1", True), ("2.11.0", False), ("2.13.0+cpu", False)),
        *(("3.0.0", False), ("git1234", False)),
    ],
)
def test_a_torch_that_is_too_old_is_named(version, said, monkeypatch):
    monkeypatch.setattr(colab.metadata, "version", {"torch": version}.__getitem__)
    assert (version in colab.old_torch()) is said and bool(colab.old_torch()) is said


def test_no_torch_is_no_old_torch(monkeypatch):
    def gone(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(colab.metadata, "version", gone)
    assert colab.old_torch() == ""


@pytest.mark.parametrize(
    ("here", "installed"),
    [
        ("dlcourse torch anywidget cloudpickle nbformat plotly psutil", []),
        ("", []),  # no torch: no Python for the course
        ("torch anywidget cloudpickle nbformat plotly psutil", ["--no-deps git+"]),
        ("torch cloudpickle nbformat psutil", ["anywidget plotly", "--no-deps git+"]),
    ],
)
def test_the_cell_installs_what_is_lacking_and_nothing_else(here, installed, monkeypatch):
    commands: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(" ".join(command).partition(" install --quiet ")[2])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: name if name in here.split() else None
    )
    monkeypatch.setattr(subprocess, "run", run)
    exec(colab.INSTALL, {})
    assert [c.replace(colab.REPOSITORY, "") for c in commands] == installed


def test_a_failed_installation_says_why(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no network here")
    monkeypatch.setattr("importlib.util.find_spec", {"torch": 1, "dlcourse": None}.get)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(AssertionError, match="no network here"):
        exec(colab.INSTALL, {})


@pytest.mark.parametrize("lang", catalog.LANGUAGES)
@pytest.mark.parametrize("name", catalog.written_lessons(ROOT))
def test_every_lesson_has_its_link_and_begins_with_the_cell(lang, name):
    notebook = nbformat.read(catalog.notebook_path(ROOT, lang, name), as_version=4)
    ends = f"/github/dlcourse/dlcourse/blob/HEAD/notebooks/{lang}/{name}.ipynb)"
    assert notebook.cells[0].source.endswith(ends)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source == colab.INSTALL and first.metadata["jupyter"] == {"source_hidden": True}
