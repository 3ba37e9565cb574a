"""Headless runs of real notebooks in real kernels: results, failures, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import nbformat
import psutil
import pytest

from dlcourse.cli import main
from dlcourse.course import build, catalog, run
from dlcourse.course.run import with_a_kernel

PLAIN = """\
# %% tags=["parameters"]
lang = "ko"
# %%
{code}
"""


def add_lesson(root: Path, name: str, code: str) -> None:
    source = catalog.source_path(root, name)
    source.parent.mkdir(exist_ok=True)
    source.write_text(PLAIN.format(code=code), encoding="utf-8")
    build.build(root, [name])


def only_lesson(root: Path, name: str, code: str) -> None:
    catalog.source_path(root, "97_demo").unlink()
    add_lesson(root, name, code)


def test_a_run_leaves_the_notebook_and_its_metrics(demo_root, tmp_path, capsys):
    build.build(demo_root)
    out = tmp_path / "results"
    arguments = ["run", "97_demo", "--lang", "en", "--ranks", "3", "--out", str(out)]
    assert main([*arguments, "--steps", "2"]) == 0
    said = capsys.readouterr()
    assert "97_demo (en):" in said.out and "97_demo.en" in said.err  # the progress bar
    notebook = nbformat.read(out / "97_demo.en.ipynb", as_version=4)
    assert "widgets" not in notebook.metadata
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    report = json.loads((out / "97_demo.en.json").read_text(encoding="utf-8"))
    assert report["passed"] and report["error"] is None and report["lesson"] == "97_demo"
    assert report["parameters"] == {"lang": "en", "num_ranks": 3, "device": "auto", "steps": 2}
    assert report["predictions"] == [{"id": "97.sum", "guess": None, "formula": 3.0, "unit": ""}]
    assert [(c["id"], c["measured"], c["ratio"]) for c in report["comparisons"]] == [
        ("97.sum", 3.0, 1.0)
    ]
    assert report["metrics"] == [{"name": "ratio", "value": 1.5, "unit": "S"}]
    assert [c["id"] for c in report["claims"]] == ["C2"]
    assert [(c["id"], c["passed"]) for c in report["checks"]] == [("97.mean", False)]
    first = report["runs"][0]["ranks"]
    assert [r["rank"] for r in first] == [0, 1, 2]
    assert all(r["comm"]["all_reduce"] == {"calls": 1, "bytes": 16} for r in first)
    assert report["machine"]["cores"] >= 1 and report["machine"]["torch"][0].isdigit()
    assert report["wall_s"] > 0 and report["date"].startswith("20")


def test_executing_stores_the_checked_outputs_in_both_languages(demo_root, capsys):
    assert main(["build", "--execute", "97"]) == 0
    assert "outputs renewed: notebooks/en/97_demo.ipynb" in capsys.readouterr().out
    assert build.check(demo_root) == []
    for lang in catalog.LANGUAGES:
        cells = nbformat.read(catalog.notebook_path(demo_root, lang, "97_demo"), 4).cells
        stored = {
            tuple(cell.metadata.get("tags", [])): cell for cell in cells if cell.get("outputs")
        }
        assert list(stored) == [(build.CHECKED,)]
        assert stored[(build.CHECKED,)].outputs[0].data["text/plain"] == "True"
        assert stored[(build.CHECKED,)].execution_count == 7
    assert main(["build"]) == 0 and build.check(demo_root) == []


def test_a_failing_cell_is_named_and_the_other_lessons_still_run(demo_root, tmp_path, capsys):
    only_lesson(demo_root, "98_bad", 'kept = 1\n# %%\nraise ValueError("no such batch")')
    add_lesson(demo_root, "99_good", "1 + 1")
    assert main(["run", "--all", "--out", str(tmp_path), "--no-progress"]) == 1
    said = capsys.readouterr()
    assert "99_good (ko):" in said.out
    line = 'cell [5] (`raise ValueError("no such batch")`) failed: ValueError: no such batch'
    assert f"98_bad (ko): {line}\n" in said.err and "98_bad.ko.ipynb" in said.err
    report = json.loads((tmp_path / "98_bad.ko.json").read_text(encoding="utf-8"))
    assert not report["passed"] and report["error"] == line
    partial = nbformat.read(tmp_path / "98_bad.ko.ipynb", as_version=4)
    assert any("kept = 1" in cell.source and cell.execution_count for cell in partial.cells)
    assert json.loads((tmp_path / "99_good.ko.json").read_text())["passed"]


def test_a_kernel_that_dies_is_a_failure_not_a_hang(demo_root, tmp_path, capsys):
    only_lesson(demo_root, "98_dies", "import os\n# %%\nos._exit(7)")
    assert main(["run", "98", "--out", str(tmp_path), "--no-progress"]) == 1
    assert "DeadKernelError" in capsys.readouterr().err


SLEEP = """\
from pathlib import Path
from dlcourse import Ranks
ranks = Ranks(2)
# %%
# %%ranks
import time
time.sleep(0 if rank else 600)
# %%
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_running(demo_root, tmp_path, number):
    only_lesson(demo_root, "98_long", SLEEP)
    process = subprocess.Popen(
        [sys.executable, "-m", "dlcourse.cli", "run", "98", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        started = wait_for_ranks(process.pid)
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.rstrip().splitlines()[-1] == ("dlcourse run: interrupted; nothing is left running")
    limit = time.monotonic() + 30
    while (left := [p for p in started if alive(p)]) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not left
    partial = nbformat.read(tmp_path / "98_long.ko.ipynb", as_version=4)
    assert any(cell.get("execution_count") for cell in partial.cells)


def wait_for_ranks(pid: int) -> list[psutil.Process]:
    """All processes below ``pid``, once the kernel's agent has its two ranks and runs the cell."""
    limit = time.monotonic() + 300
    while time.monotonic() < limit:
        below = psutil.Process(pid).children(recursive=True)
        if len(below) >= 5:  # kernel, agent, launcher, two ranks
            time.sleep(1.5)
            return psutil.Process(pid).children(recursive=True)
        time.sleep(0.2)
    raise AssertionError("the ranks did not start")


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_only_declared_parameters_are_passed(demo_root):
    build.build(demo_root)
    notebook = run.read_built("97_demo", "ko", demo_root)
    assert run.declared_parameters(notebook) == {
        "lang": "ko",
        "num_ranks": 2,
        "device": "auto",
        "steps": 3,
    }


def test_a_lesson_gets_what_it_declares_and_the_caller_keeps_its_environment(
    demo_root, tmp_path, monkeypatch
):
    monkeypatch.setenv("DLCOURSE_PANEL", "on")
    monkeypatch.delenv("DLCOURSE_METRICS", raising=False)
    only_lesson(demo_root, "98_env", 'import os\nassert os.environ["DLCOURSE_PANEL"] == "off"')
    result = run.run_lesson("98", ranks=2, device="cpu", steps=4, out=tmp_path, progress=False)
    assert result.passed, result.error
    # What the lesson does not declare is not given to it.
    assert json.loads(result.results.read_text())["parameters"] == {"lang": "ko"}
    assert os.environ["DLCOURSE_PANEL"] == "on" and "DLCOURSE_METRICS" not in os.environ


def test_a_device_that_is_not_here_is_refused_before_anything_starts(demo_root):
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="this machine has none; use auto or cpu"):
            run.check_device("cuda")
    assert run.check_device("cpu") == "cpu"


WRAPPERS = """\
from dlcourse import Ranks
ranks = Ranks(2)
# %%
# %%ranks
import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.data import OverlappedDataParallel
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3 import ZeRO3
tokens = torch.arange(32).view(2, 16)
for wrap in (DistributedDataParallel, fully_shard, OverlappedDataParallel, ZeRO1, ZeRO2, ZeRO3):
    model = wrap(GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=16)))
    model(tokens, tokens).backward()
"""


def test_nothing_warns_in_a_cell_or_in_the_terminal(demo_root, tmp_path, capfd):
    only_lesson(demo_root, "98_wraps", WRAPPERS)
    status = main(["run", "98", "--out", str(tmp_path), "--no-progress"])
    terminal = capfd.readouterr()
    assert status == 0, terminal.err
    said = terminal.err.lower()
    assert not [word for word in ("warn", "encrypt", "error") if word in said], said
    cells = nbformat.read(tmp_path / "98_wraps.ko.ipynb", as_version=4).cells
    outputs = [o for cell in cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o.text for o in outputs if o.get("name") == "stderr"]
    assert not [o.text for o in outputs if "Warning" in o.get("text", "")]


def test_the_kernel_of_a_run_is_encrypted_and_has_nothing_to_warn_of(demo_root, tmp_path):
    from dlcourse.course.serve import kernel_settings

    assert kernel_settings() == {"transport_encryption": "auto"}  # the pinned versions have it
    only_lesson(
        demo_root,
        "98_kernel",
        "from ipykernel.kernelapp import IPKernelApp\n"
        "assert IPKernelApp.instance().curve_publickey",
    )
    assert main(["run", "98", "--out", str(tmp_path), "--no-progress"]) == 0


@pytest.mark.parametrize("name", ["r{1}", "r{lang}", "{", "}{", "r plain", "한글"])
def test_the_folder_of_results_is_called_as_it_was_given(name, demo_root, tmp_path):
    only_lesson(demo_root, "98_plain", "1 + 1")
    result = run.run_lesson("98", out=tmp_path / name, progress=False)
    assert result.passed, result.error
    left = sorted(p.name for p in (tmp_path / name).iterdir())
    assert left == ["98_plain.ko.ipynb", "98_plain.ko.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["course", name])


def test_a_course_in_a_folder_with_braces_runs(demo_root, tmp_path, monkeypatch):
    only_lesson(demo_root, "98_plain", "1 + 1")
    moved = demo_root.rename(tmp_path / "my {course}")
    monkeypatch.setenv("DLCOURSE_ROOT", str(moved))
    assert main(["run", "98", "--out", str(tmp_path / "out"), "--no-progress"]) == 0


def test_no_place_for_results_is_said_before_anything_starts(demo_root, tmp_path, capsys):
    only_lesson(demo_root, "98_plain", "1 + 1")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / "98_plain.ko.json").mkdir(parents=True)
    wrong = {"file": "File exists", "file/below": "Not a directory", "taken": "Is a directory"}
    wrong |= {"x" * 300: "File name too long", "a\0b": "null"}
    for name, reason in wrong.items():
        assert main(["run", "--all", "--out", str(tmp_path / name), "--no-progress"]) == 2, name
        said = capsys.readouterr().err
        assert "cannot be written" in said and reason in said and said.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"
    assert not list(tmp_path.glob("taken/*.ipynb"))


def test_a_folder_without_permission_is_said_before_anything_starts():
    with without_roots_rights(), tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o500)
        with pytest.raises(ValueError, match=rf"{place}/below cannot .*\(Permission denied\)"):
            run.check_out(Path(place, "below"))


@pytest.mark.parametrize("content", [b'{"cells": [', b"\xff\xfe", b"", b"[]", b'{"cells": 3}'])
def test_a_notebook_that_was_cut_off_is_named_with_what_to_do(content, demo_root, tmp_path, capsys):
    """An editor's save on a full disk leaves such files."""
    only_lesson(demo_root, "00_first", "1 + 1")
    catalog.notebook_path(demo_root, "en", "00_first").write_bytes(content)
    for all_or_one in ("00", "--all"):
        assert main(["run", all_or_one, "--lang", "en", "--out", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert "notebooks/en/00_first.ipynb is no whole notebook" in said
        assert "move it away, and run `dlcourse build`" in said and said.count("\n") == 1


def test_a_disk_that_fills_up_is_named_as_the_failure(demo_root, tmp_path, monkeypatch, capsys):
    """It leaves half of a notebook, which is no JSON and is not what is to be mended."""
    only_lesson(demo_root, "00_first", "1 + 1")

    def full(_: str, target: str, **__: object) -> None:
        Path(target).write_text('{"cells": [')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("papermill.execute_notebook", full)
    assert main(["run", "00", "--lang", "en", "--out", str(tmp_path)]) == 1
    assert "00_first (en): OSError: [Errno 28] No space left" in capsys.readouterr().err
    assert "No space" in json.loads((tmp_path / "00_first.en.json").read_text())["error"]
    monkeypatch.setattr(run, "_left", lambda *_: (tmp_path / "a.ipynb", Path("/dev/full")))
    assert main(["run", "00", "--lang", "en", "--out", str(tmp_path)]) == 1
    assert "No space left on device: '/dev/full'" in capsys.readouterr().err


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """Root may write everywhere: be somebody else for as long as this lasts."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # "nobody"
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    ("failures", "words", "calls"), [(1, "kernel", 2), (9, "kernel", 3), (1, "cell", 1)]
)
def test_a_kernel_that_did_not_start_gets_another_chance(failures, words, calls):
    """Seen as "Address already in use": a port was taken between its choice and its use."""
    said = {"kernel": "Kernel died before replying to kernel_info", "cell": "a cell failed"}
    made = []

    def execute():
        made.append(1)
        if len(made) <= failures:
            raise RuntimeError(said[words])

    with nullcontext() if failures < calls else pytest.raises(RuntimeError, match=said[words]):
        with_a_kernel(execute)
    assert len(made) == calls
