"""Lessons within Binder's limits: one CPU and 2 GB for JupyterLab, the kernel and all ranks.

The limits are those of a control group that the lesson runs in, with `dlcourse lab` beside it, as
binder/start starts both (one thread a rank). What is measured: seconds, and the most memory that
the group held at once, without pages of files that the system may drop. Needs Linux and root.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dlcourse.bench._options import parser_of
from dlcourse.course import catalog

CPUS, MEMORY = 1, 2 * 10**9  # what Binder promises a user
SECONDS, PEAK = 180, 10**9  # targets for a lesson
GROUPS = Path("/sys/fs/cgroup")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each lesson; 0 where all pass and meet both targets, else 1."""
    parser = parser_of("binder", __doc__)
    parser.add_argument("--lessons", nargs="*", help="numbers or names (default: all)")
    parser.add_argument("--lang", default="ko")
    parser.add_argument("--out", type=Path, help="keeps the executed notebooks")
    parser.add_argument("--json", type=Path, help="adds the figures to this file")
    args = parser.parse_args(argv)
    if reason := missing():
        print(f"not measured: {reason}")
        return 0
    root = catalog.course_root()
    names = [catalog.find_lesson(n, root) for n in args.lessons or ()] or catalog.written_lessons(
        root
    )
    met = True
    for name in names:
        with tempfile.TemporaryDirectory() as kept:
            found = measure(name, args.lang, args.out or Path(kept))
        good = found["passed"] and found["seconds"] <= SECONDS and found["peak"] <= PEAK
        met &= good
        print(
            f"{name}  {found['seconds']:4.0f} s  {found['peak'] / 1e6:6,.0f} MB"
            f"  {'' if found['passed'] else 'FAILED'}{'' if good else '  over the target'}",
            flush=True,
        )
        if args.json:
            _add(args.json, f"{name}.{args.lang}", found)
    return 0 if met else 1


def missing() -> str:
    """Why control groups cannot be made here, or ""."""
    if not sys.platform.startswith("linux"):
        return "control groups are Linux's"
    if os.geteuid() != 0:
        return "only root makes control groups"
    if not all(os.access(GROUPS / c, os.W_OK) for c in ("cpu", "memory")):
        return "this machine has no writable control groups of version 1"
    return ""


def measure(name: str, lang: str, out: Path) -> dict[str, Any]:
    """Run a lesson in a group of its own: seconds, peak (bytes) and whether it passed."""
    with limited() as (enter, held):
        # `dlcourse lab` as binder/start has it; it is there before the lesson begins.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "dlcourse.cli"]
        with tempfile.TemporaryFile("w+") as log:
            lab = subprocess.Popen(
                [*command, "lab", "--no-browser", "--allow-root", "--ServerApp.port=0"],
                env=environment,
                preexec_fn=enter,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while "token=" not in _read(log):
                    if lab.poll() is not None:
                        raise RuntimeError(f"dlcourse lab ended: {_read(log)}")
                    time.sleep(0.2)
                begun = time.monotonic()
                with _highest(held) as highest:
                    done = subprocess.run(
                        [*command, "run", name, "--lang", lang, "--out", str(out), "--no-progress"],
                        env=environment,
                        preexec_fn=enter,
                        capture_output=True,
                        text=True,
                    )
                seconds = time.monotonic() - begun
            finally:
                lab.terminate()
                lab.wait()
    if done.returncode:
        print(done.stdout + done.stderr)
    return {
        "seconds": round(seconds, 1),
        "peak": highest[0],
        "passed": done.returncode == 0,
        "date": datetime.date.today().isoformat(),
    }


@contextlib.contextmanager
def limited() -> Iterator[tuple[Any, Any]]:
    """A group with Binder's limits: what a child calls to be in it, and the bytes it holds."""
    name = f"dlcourse-binder-{os.getpid()}"
    cpu, memory = GROUPS / "cpu" / name, GROUPS / "memory" / name
    for folder in (cpu, memory):
        folder.mkdir()
    try:
        (cpu / "cpu.cfs_period_us").write_text("100000")
        (cpu / "cpu.cfs_quota_us").write_text(str(CPUS * 100_000))
        (memory / "memory.limit_in_bytes").write_text(str(MEMORY))

        def enter() -> None:
            for folder in (cpu, memory):
                (folder / "cgroup.procs").write_text(str(os.getpid()))

        def held() -> int:
            lines = (memory / "memory.stat").read_text().splitlines()
            stat = {key: int(value) for key, value in (line.split() for line in lines)}
            used = int((memory / "memory.usage_in_bytes").read_text())
            return used - stat["total_inactive_file"] - stat["total_active_file"]

        yield enter, held
    finally:
        for folder in (cpu, memory):
            _remove(folder)


def _remove(folder: Path) -> None:
    """End what is still in a group, and the group."""
    for _ in range(100):
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        try:
            folder.rmdir()
        except OSError:  # its processes are still ending
            time.sleep(0.1)
        else:
            return


@contextlib.contextmanager
def _highest(held: Any, interval: float = 0.1) -> Iterator[list[int]]:
    """The most that `held()` gave meanwhile, looked at each tenth of a second."""
    over, highest = threading.Event(), [held()]

    def look() -> None:
        while not over.wait(interval):
            highest[0] = max(highest[0], held())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield highest
    finally:
        over.set()
        thread.join()


def _read(log: Any) -> str:
    log.seek(0)
    return str(log.read())


def _add(path: Path, key: str, found: dict[str, Any]) -> None:
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept[key] = found
    text = json.dumps(dict(sorted(kept.items())), indent=1)
    path.write_text(text + "\n", encoding="utf-8")
