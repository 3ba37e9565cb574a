"""Kills and interrupts at random moments of a lesson's run, or of a few small cells, in a real
kernel.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import nbformat
import psutil
from jupyter_client.manager import KernelManager
from traitlets.config import Config

from dlcourse.bench.soak.cells import CHECK, notebook_cells
from dlcourse.bench.soak.trial import (
    NAMED,
    SUCCESS,
    UNNAMED,
    Ending,
    TooLate,
    Trial,
    named,
    role,
)
from dlcourse.course import catalog
from dlcourse.course.serve import kernel_settings

CELL_LIMIT = 600.0  # seconds for a cell that nothing was done to
# Seconds: the fault comes up to so long after a cell has begun, of a lesson and of the small ones.
DELAY = {True: 2.0, False: 0.4}


@dataclass
class Failure:
    """A cell's error, as the kernel tells it."""

    error: str
    said: str


class KernelGone(Exception):
    """The kernel's process has ended."""


class Notebook:
    """A kernel in which cells are run one after the other."""

    def __init__(self, trial: Trial, cwd: Path) -> None:
        for left in (2, 1, 0):  # another program may take one of its ports before it does
            config = Config({"KernelManager": kernel_settings()})  # as Lab starts it
            self.manager = KernelManager(kernel_name="python3", config=config)
            quiet = ["--IPKernelApp.log_level=CRITICAL"]
            self.manager.start_kernel(env=trial.environment(), cwd=str(cwd), extra_arguments=quiet)
            self.client = self.manager.blocking_client()
            self.client.start_channels()
            try:
                self.client.wait_for_ready(timeout=120)
                break
            except RuntimeError:
                self.close()
                if not left:
                    raise

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)  # type: ignore[union-attr]

    def run(self, source: str, late: Callable[[], bool]) -> Failure | None:
        """Run a cell; its error, or None.

        Raises:
            TooLate: `late` says so before the cell has ended.
            KernelGone: it has ended.
        """
        wanted = self.client.execute(source)
        while True:
            try:
                reply: Any = self.client.get_shell_msg(timeout=0.2)
            except Empty:
                if not self.manager.is_alive():
                    raise KernelGone from None
                if late():
                    raise TooLate from None
                continue
            content = reply["content"]
            if reply["parent_header"].get("msg_id") != wanted:
                continue
            if content["status"] != "aborted":
                break
            # A kernel drops the cells that it has got when one fails; nobody would send one then.
            time.sleep(0.05)
            wanted = self.client.execute(source)
        if content["status"] == "ok":
            return None
        return Failure(content.get("ename", content["status"]), content.get("evalue", ""))

    def close(self) -> None:
        """End it as Jupyter does."""
        self.client.stop_channels()
        with suppress(Exception):
            self.manager.shutdown_kernel(now=not self.manager.is_alive())
        self.manager.cleanup_resources()


class Fault:
    """Something that is done once, some time after `arm`, in a thread of its own.

    Attributes:
        when: it was done, on the monotonic clock; None before.
        what: in words.
    """

    def __init__(self, do: Callable[[], str], delay: float) -> None:
        self._do, self._delay = do, delay
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.when: float | None = None
        self.what = "nothing was there to hit"

    def arm(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        self._over.wait(self._delay)
        while not self._over.is_set():
            if what := self._do():
                self.what, self.when = what, time.monotonic()
                return
            self._over.wait(0.01)

    def finish(self, seconds: float) -> None:
        """Wait for it, but no longer than this."""
        if self._thread.is_alive():
            self._thread.join(seconds)
            self._over.set()
            self._thread.join()


def after(seconds: float) -> Callable[[], bool]:
    """What is true from so many seconds on."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def cells_of(trial: Trial) -> tuple[str, list[str], Path]:
    """What is run: a name, its code cells, the folder."""
    if not trial.lessons:
        size = trial.chance.choice((2, 4))
        return f"cells in {size} ranks", notebook_cells(size), trial.place
    root = catalog.course_root()
    written = catalog.written_lessons(root)
    lesson = written[trial.number % len(written)]
    path = catalog.notebook_path(root, "en", lesson)
    notebook = nbformat.read(path, as_version=4)
    sources = [c.source for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    return lesson, sources, path.parent


def kill(trial: Trial) -> Ending:
    """A rank, the launcher, the agent or a program of a peer is killed."""

    def do() -> str:
        found = [p for p in trial.processes() if p.pid != notebook.pid]
        if not found:
            return ""
        hit = trial.chance.choice(sorted(found, key=lambda p: p.pid))
        what = role(hit)
        try:
            hit.kill()
        except psutil.NoSuchProcess:
            return ""
        return f"{what} killed"

    name, cells, cwd = cells_of(trial)
    notebook = Notebook(trial, cwd)
    return _disturbed(trial, notebook, name, cells, do)


def interrupt(trial: Trial) -> Ending:
    """Jupyter's ■."""

    def do() -> str:
        notebook.manager.interrupt_kernel()
        return "interrupted"

    name, cells, cwd = cells_of(trial)
    notebook = Notebook(trial, cwd)
    return _disturbed(trial, notebook, name, cells, do, stopped=("KeyboardInterrupt",))


def _disturbed(
    trial: Trial,
    notebook: Notebook,
    name: str,
    cells: list[str],
    do: Callable[[], str],
    stopped: tuple[str, ...] = (),
) -> Ending:
    """Run cells to the first error, with a fault at a random moment; then the next cell.

    stopped: errors that mean that the fault did what it is for.
    """
    at = trial.chance.randrange(len(cells))
    fault = Fault(do, trial.chance.uniform(0, DELAY[trial.lessons]))
    failure, began = None, time.monotonic()

    def late() -> bool:
        now = time.monotonic()
        if fault.when is None:
            return now > began + CELL_LIMIT
        # What a lesson's own cell takes is not known: a minute more is its.
        return now > max(fault.when, began) + trial.limit + 60

    try:
        for number, source in enumerate(cells):
            if number == at:
                fault.arm()
            began = time.monotonic()
            failure = notebook.run(source, late)
            if failure is not None:
                break
            if fault.when is not None and stopped:
                break  # the cell came to its end before the interrupt did; there is no more
        ended = time.monotonic()
        hit = fault.when is not None or number >= at
        fault.finish(DELAY[trial.lessons] + 1)
        words = f"{name}, {fault.what} at cell {number + 1} of {len(cells)}"
        kind, seconds = SUCCESS, 0.0
        if failure is None:  # it came between cells; then it is the next one's
            began = time.monotonic()
            failure, ended = notebook.run(CHECK, after(trial.limit)), time.monotonic()
        if failure is not None:
            good = failure.error in stopped or named(failure.error, failure.said)
            kind = NAMED if good and hit else UNNAMED
            said = failure.said.partition("\n")[0] if good else failure.said
            words += f": {failure.error}: {said}"
            seconds = ended - max(began, fault.when or 0.0)
        again = notebook.run(CHECK, after(trial.limit))
        if again is not None:
            kind = UNNAMED
            words = f"the next cell fails: {again.error}: {again.said[:150]}; before it: {words}"
        return Ending(kind, words, seconds)
    except TooLate:
        raise TooLate(f"{name}, {fault.what}") from None
    except KernelGone:
        return Ending(UNNAMED, f"{name}, {fault.what}: the kernel has ended")
    finally:
        fault.finish(0)
        notebook.close()


def kill_kernel(trial: Trial) -> Ending:
    """The kernel is killed; all that it has started must end by itself."""

    def do() -> str:
        os.kill(notebook.pid, signal.SIGKILL)
        return "kernel killed"

    name, cells, cwd = cells_of(trial)
    notebook = Notebook(trial, cwd)
    fault = Fault(do, trial.chance.uniform(0, DELAY[trial.lessons]))
    at = trial.chance.randrange(len(cells))
    try:
        with suppress(KernelGone):
            for number, source in enumerate(cells):
                if number == at:
                    fault.arm()
                failure = notebook.run(source, after(CELL_LIMIT))
                if failure is not None:
                    return Ending(UNNAMED, f"{name}: {failure.error}: {failure.said[:200]}")
        fault.finish(DELAY[trial.lessons] + 1)
        try:
            trial.until(lambda: not trial.processes(), trial.limit)
        except TooLate:
            left = ", ".join(map(role, trial.processes()))
            raise TooLate(f"{name}, at cell {number + 1}: still runs {left}") from None
        took = time.monotonic() - (fault.when or time.monotonic())
        return Ending(SUCCESS, f"{name}, kernel killed at cell {number + 1}, nothing left", took)
    finally:
        fault.finish(0)
        notebook.close()
