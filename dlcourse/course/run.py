"""Run built lessons headless: papermill with parameters, metrics as JSON, nothing left behind.

The notebook's kernel is told through its environment: ``DLCOURSE_PANEL=off`` (no widgets) and
``DLCOURSE_METRICS`` (the file to which the lesson's helpers append what they measured).
"""

from __future__ import annotations

import ast
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from traitlets.config import Config

from dlcourse import __version__
from dlcourse.course import catalog, metrics
from dlcourse.course.serve import kernel_settings
from dlcourse.light_nbformat import nbformat

DEVICES = ("auto", "cpu", "cuda", "mps")
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
CELL_TIMEOUT = 600  # seconds; a lesson's own limits are far shorter, this one is against hangs


def _client() -> dict[str, Any]:
    """For nbclient: no widget state in the notebook, the kernel as Lab starts it.

    What goes wrong is said in the cells. The kernel's log only adds "ERROR | KeyboardInterrupt
    caught in kernel" when jupyter_client, as it always does, interrupts it to end it.
    """
    return {
        "store_widget_state": False,
        "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"],
        "config": Config({"KernelManager": kernel_settings()}),
    }


@dataclass(frozen=True)
class LessonRun:
    """What a headless run left: two files, and the failure if there was one."""

    lesson: str
    lang: str
    notebook: Path
    results: Path
    wall_s: float
    error: str | None

    @property
    def passed(self) -> bool:
        return self.error is None


def declared_parameters(notebook: Any) -> dict[str, Any]:
    """Names and values that the notebook's parameters cell assigns."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            values = {}
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    values[node.targets[0].id] = ast.literal_eval(node.value)
            return values
    return {}


def read_built(name: str, lang: str, root: Path) -> Any:
    """The built notebook of a lesson; ``ValueError`` if it is not built, or is no notebook."""
    path = catalog.notebook_path(root, catalog.check_language(lang), name)
    if not path.exists():
        raise ValueError(f"{path} is not built: run `dlcourse build`")
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # of JSON, of UTF-8, of the schema
        said = str(error).partition("\n")[0][:80]
        raise ValueError(
            f"{path} is no whole notebook ({said}): move it away, and run `dlcourse build`"
        ) from None


def check_device(device: str) -> str:
    """Return ``device`` if this machine has it.

    Raises:
        ValueError: an unknown device, or one that is not here; says which are.
    """
    if device not in DEVICES:
        raise ValueError(f"device={device!r} is unknown; choose one of: {', '.join(DEVICES)}")
    if device in ("cuda", "mps"):
        import torch  # only here: it takes a second, and the other devices need no question

        here = torch.cuda.is_available() if device == "cuda" else torch.mps.is_available()
        if not here:
            raise ValueError(f"device={device!r}: this machine has none; use auto or cpu")
    return device


def check_ranks(ranks: int | None) -> int | None:
    """Return ``ranks`` if the machines can hold them, else ``ValueError`` with what would fit."""
    from dlcourse.machine import fitting_ranks
    from dlcourse.ranks.machines import of_this_run

    if ranks is not None:
        fit = fitting_ranks() * of_this_run().used_for(ranks) if ranks > 0 else fitting_ranks()
        if ranks < 1:
            raise ValueError(f"ranks={ranks}: give a number from 1 to {fit}")
        if ranks > fit:
            raise ValueError(f"ranks={ranks} do not fit into this machine's memory; at most {fit}")
    return ranks


def check_out(out: Path, names: Iterable[str] = (), lang: str = "ko") -> Path:
    """Make the folder for results, and return it if the files of ``names`` can be written there.

    Raises:
        ValueError: it, or one of the files, cannot be made or written; says which and why.
    """
    path = out
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in (p for name in names for p in _left(out, name, lang)):
            new = not path.exists()
            path.open("ab").close()  # writes nothing, and fails as writing would
            if new:
                path.unlink()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"out={str(out)!r}: {path} cannot be written ({reason}); give a folder of yours"
        ) from None
    return out


def _left(out: Path, name: str, lang: str) -> tuple[Path, Path]:
    """The two files that a run leaves: the executed notebook and the results."""
    return out / f"{name}.{lang}.ipynb", out / f"{name}.{lang}.json"


def run_lesson(
    name: str,
    *,
    lang: str = "ko",
    ranks: int | None = None,
    device: str = "auto",
    steps: int | None = None,
    out: Path = Path("results"),
    root: Path | None = None,
    progress: bool = True,
) -> LessonRun:
    """Run one lesson's notebook and write ``out/<name>.<lang>.ipynb`` and ``.json``.

    Parameters that the notebook does not declare are left out. A failing cell ends the run: the
    notebook is kept up to there, with the error in it.

    Raises:
        ValueError: an unknown lesson, language or device, or no place for the results, before
            anything starts.
        KeyboardInterrupt: interrupted; kernel and ranks have ended, and what was measured is kept.
    """
    import papermill

    root = root or catalog.course_root()
    name = catalog.find_lesson(name, root)
    notebook = read_built(name, lang, root)
    check_device(device)
    check_ranks(ranks)
    wanted = {"lang": lang, "num_ranks": ranks, "device": device, "steps": steps}
    declared = declared_parameters(notebook)
    parameters = {k: v for k, v in wanted.items() if k in declared and v is not None}
    check_out(out, [name], lang)
    target, results = _left(out, name, lang)
    source = catalog.notebook_path(root, lang, name)
    error = None
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dlcourse-") as scratch:
        collected = Path(scratch) / "metrics.jsonl"
        variables = {**_headless(lang), metrics.VARIABLE: str(collected)}
        with _environment(variables), interruptible():
            try:
                with_a_kernel(
                    lambda: papermill.execute_notebook(
                        _literal(source),
                        _literal(target),
                        parameters=parameters,
                        kernel_name="python3",
                        cwd=str(source.parent),
                        progress_bar={"desc": f"{name}.{lang}"} if progress else False,
                        execution_timeout=CELL_TIMEOUT,
                        **_client(),
                    )
                )
            except KeyboardInterrupt:
                error = "interrupted"
            except Exception as failure:  # a failed cell, a dead kernel, a time-out
                error = _describe(failure)
            finally:
                _strip_widgets(target)
                entries = metrics.read(collected)
        wall = time.perf_counter() - start
        used = {**declared, **parameters}
        report = _report(name, lang, used, wall, error, entries)
    try:
        text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
        results.write_text(text, encoding="utf-8")
    except OSError as failure:  # of a full disk it does not name the file
        raise OSError(failure.errno, failure.strerror, str(results)) from None
    if error == "interrupted":
        raise KeyboardInterrupt
    return LessonRun(name, lang, target, results, wall, error)


def has_passed(name: str, lang: str, out: Path) -> bool:
    """Whether an earlier run has left results of a lesson in ``out``, and they are good."""
    try:
        return json.loads(_left(out, name, lang)[1].read_text(encoding="utf-8"))["passed"] is True
    except (FileNotFoundError, ValueError, KeyError):
        return False


def note_progress(out: Path, lesson: str, state: str) -> None:
    """Add a line to ``out/progress.jsonl``, which tells how far a run of lessons is."""
    with (out / "progress.jsonl").open("a", encoding="utf-8") as file:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        file.write(json.dumps({"time": now, "lesson": lesson, "state": state}) + "\n")


def run_cells(notebook: Any, *, cwd: Path) -> None:
    """Execute a notebook in place, headless; raises nbclient's error at the first failing cell."""
    from nbclient import NotebookClient

    lang = declared_parameters(notebook).get("lang", "ko")
    with _environment(_headless(lang)), interruptible():
        cwd.mkdir(parents=True, exist_ok=True)
        with_a_kernel(
            lambda: NotebookClient(
                notebook,
                timeout=CELL_TIMEOUT,
                kernel_name="python3",
                resources={"metadata": {"path": str(cwd)}},
                **_client(),
            ).execute()
        )


def with_a_kernel(execute: Callable[[], object]) -> None:
    """Execute a notebook; again, twice at most, where its kernel ended before the first cell.

    Jupyter chooses a kernel's ports before the kernel binds them, and on a busy machine another
    program may have taken one meanwhile.
    """
    for left in (2, 1, 0):
        try:
            execute()
            return
        except RuntimeError as error:
            if not left or "before replying to kernel_info" not in str(error):
                raise


def machine() -> dict[str, Any]:
    """This machine, as results describe it: what may be used, not what the host has."""
    from dlcourse.machine import cores, memory_bytes

    return {
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "dlcourse": __version__,
    }


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C, SIGTERM, and SIGUSR1 (of Slurm, before it takes machines away) raise
    ``KeyboardInterrupt`` once; later ones cannot break the cleaning.
    """
    told = False

    def interrupt(*_: Any) -> None:
        nonlocal told
        if not told:
            told = True
            raise KeyboardInterrupt

    try:
        before = {s: signal.signal(s, interrupt) for s in _INTERRUPTS}
    except ValueError:  # not in the main thread: whoever owns it handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _literal(path: Path) -> str:
    """A path as papermill takes it: there, what stands in braces is a parameter's name."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _headless(lang: str) -> dict[str, str]:
    return {"DLCOURSE_PANEL": "off", "DLCOURSE_LANG": lang}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _describe(failure: Exception) -> str:
    """One line, for a user: which cell failed, and why."""
    from papermill.exceptions import PapermillExecutionError

    if isinstance(failure, PapermillExecutionError):
        first = next((line for line in failure.source.splitlines() if line.strip()), "")
        reason = f"{failure.ename}: {failure.evalue}" if failure.evalue else failure.ename
        return f"cell [{failure.exec_count}] (`{first.strip()}`) failed: {reason}"
    return f"{type(failure).__name__}: {failure}"


def _strip_widgets(path: Path) -> None:
    """No widget state in what a headless run leaves; papermill's client writes an empty one."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError):  # there is none, or a full disk has cut it off
        return
    if notebook.metadata.pop("widgets", None) is not None:
        nbformat.write(notebook, path)


def _report(
    name: str,
    lang: str,
    parameters: dict[str, Any],
    wall: float,
    error: str | None,
    entries: list[dict[str, Any]],
) -> dict[str, Any]:
    def of(kind: str) -> list[dict[str, Any]]:
        return [{k: v for k, v in e.items() if k != "kind"} for e in entries if e["kind"] == kind]

    now = datetime.datetime.now(datetime.UTC)
    return {
        "lesson": name,
        "lang": lang,
        "passed": error is None,
        "error": error,
        "date": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "parameters": parameters,
        "wall_s": round(wall, 3),
        "predictions": of("prediction"),
        "comparisons": of("comparison"),
        "claims": of("claim"),
        "checks": of("check"),
        "metrics": of("metric"),
        "runs": of("run"),
    }


def _gpus() -> list[str]:
    """Names of the NVIDIA GPUs; asked of the driver, for this process has no torch."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
