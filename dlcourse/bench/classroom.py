"""How many learners one machine holds: so many of them run a lesson at the same moment.

    dlcourse bench classroom --learners 1 10
    dlcourse bench classroom --learners 30 --record data/classroom.json   # keeps the other rows

Each learner is a `dlcourse run`, with a kernel, an agent and ranks of its own and folders of its
own; what a classroom shares they share: cores, memory, ports, /tmp, /dev/shm. It is the worst
moment of a lesson: learners who read, guess and answer between two cells need the cores in turn.

Memory is the PSS of all these processes together: a page that several share counts once. It is
looked at as often as takes a twentieth of one core. Their losses and what their ranks sent are
compared with the first one's: learners who disturb each other would measure something else.
Where the machine's memory runs out, all are ended before the system begins to kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from dlcourse import __version__, machine
from dlcourse.bench._options import parser_of
from dlcourse.course import catalog
from dlcourse.measure.process_memory import pss_bytes
from dlcourse.words.text_table import text_table

MARK = "DLCOURSE_LEARNER_MARK"  # in the environment of all that one measurement starts
SHARE = 0.05  # of one core, for looking at memory, and as much for looking at the time used
LEAST_FREE = 1.5e9  # bytes; below it, a class is too large for the machine


@dataclass
class Memory:
    """The most that was seen together, and of which processes it was made; bytes."""

    peak: int = 0
    of: dict[str, int] = field(default_factory=dict)
    processes: int = 0
    looks: int = 0

    def look(self, processes: Iterable[psutil.Process]) -> None:
        of: dict[str, int] = {}
        count = 0
        for process in processes:
            with contextlib.suppress(psutil.Error, OSError):
                role = role_of(process.cmdline())
                of[role] = of.get(role, 0) + pss_bytes(process)
                count += 1
        self.looks += 1
        if sum(of.values()) > self.peak:
            self.peak, self.of, self.processes = sum(of.values()), of, count


@dataclass
class CpuTime:
    """Seconds of all cores, as last seen of each process; what is not waited for counts too."""

    seen: dict[tuple[int, float], float] = field(default_factory=dict)

    def look(self, processes: Iterable[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.Error, OSError):
                times = process.cpu_times()
                self.seen[process.pid, process.create_time()] = times.user + times.system

    @property
    def seconds(self) -> float:
        return sum(self.seen.values())


class NowAndThen:
    """Says when a look is due that may take a share of one core."""

    def __init__(self, share: float) -> None:
        self._share, self._next = share, 0.0

    @contextlib.contextmanager
    def due(self) -> Iterator[bool]:
        if time.perf_counter() < self._next:
            yield False
            return
        before = time.process_time()
        yield True
        self._next = time.perf_counter() + (time.process_time() - before) / self._share


def family(parents: Iterable[int]) -> list[psutil.Process]:
    """These processes and all below them; one look through the machine's processes."""
    below: dict[int, list[int]] = {}
    for pid, parent in psutil._ppid_map().items():
        below.setdefault(parent, []).append(pid)
    found, todo = [], list(parents)
    while todo:
        pid = todo.pop()
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
        todo += below.get(pid, [])
    return found


def role_of(command: Sequence[str]) -> str:
    """What a process of a learner is for: the kernel, its ranks, or what runs the notebook."""
    line = " ".join(command)
    if "ipykernel_launcher" in line:
        return "kernel"
    return "ranks" if "dlcourse.ranks" in line else "runner"


def environment(home: Path) -> dict[str, str]:
    """A learner's variables: own folders, shared machine."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JUPYTER", "IPYTHON", "XDG_", "DLCOURSE_"))
        or name in ("DLCOURSE_ROOT",)
    }
    return kept | {"HOME": str(home), "DLCOURSE_LEARNER": str(home / "learner")}


def fingerprint(results: dict[str, Any]) -> Any:
    """What does not depend on time in a learner's results: calls, bytes, losses of every run."""
    return [
        [(rank["rank"], rank["comm"], rank["loss"]) for rank in run["ranks"]]
        for run in results["runs"]
    ]


def classroom(learners: int, lesson: str, lang: str) -> dict[str, Any]:
    """Let so many learners run a lesson at once.

    Returns:
        ``learners``; ``seconds`` until the last one is through, ``first_s`` and ``median_s`` of
        the others; ``cpu_s``: of all together; ``memory``: bytes, the most at one moment; ``full``:
        whether it ran out, and all were ended;
        ``memory_of``: its parts; ``passed``; ``errors``; ``same``: how many measured the same
        calls, bytes and losses as the first; ``left``: processes that did not end.
    """
    mark, memory = uuid.uuid4().hex, Memory()
    with tempfile.TemporaryDirectory(prefix="dlcourse-class-") as name:
        started: dict[int, tuple[subprocess.Popen[bytes], Path]] = {}
        ended: dict[Path, float] = {}
        cpu, cpu_look, memory_look = CpuTime(), NowAndThen(SHARE), NowAndThen(SHARE)
        full = False
        start = time.perf_counter()
        try:
            for number in range(learners):
                home = Path(name) / f"learner{number:02}"
                home.mkdir(mode=0o700)
                command = [sys.executable, "-m", "dlcourse.cli", "run", lesson]
                command += ["--lang", lang, "--out", str(home / "out"), "--no-progress"]
                with (home / "said.txt").open("wb") as said:
                    process = subprocess.Popen(
                        command,
                        env=environment(home) | {MARK: mark},
                        cwd=home,
                        stdin=subprocess.DEVNULL,
                        stdout=said,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                started[process.pid] = (process, home)
            while started:
                for pid, (process, home) in list(started.items()):
                    if process.poll() is not None:
                        del started[pid]
                        ended[home] = time.perf_counter() - start
                with cpu_look.due() as due:
                    if due:
                        cpu.look(family(started))
                with memory_look.due() as due:
                    if due:
                        memory.look(family(started))
                full = full or machine.available_bytes() < LEAST_FREE
                if full:
                    break
                time.sleep(0.1)
        finally:  # after a Stop, or where it is too much: each ends its kernel and its ranks
            for process, _ in started.values():
                process.send_signal(signal.SIGTERM)
            for process, home in started.values():
                process.wait()
                ended[home] = time.perf_counter() - start
        results, errors = [], []
        for home in sorted(ended):
            file = next((home / "out").glob("*.json"), None)
            found = json.loads(file.read_text("utf-8")) if file else None
            if found and found["passed"]:
                results.append(found)
            else:
                errors.append(found["error"] if found else (home / "said.txt").read_text("utf-8"))
    times = sorted(ended.values())
    prints = [fingerprint(found) for found in results]
    return {
        "learners": learners,
        "seconds": round(times[-1], 1),
        "first_s": round(times[0], 1),
        "median_s": round(times[len(times) // 2], 1),
        "cpu_s": round(cpu.seconds, 1),
        "full": full,
        "memory": memory.peak,
        "memory_of": memory.of,
        "processes": memory.processes,
        "looks": memory.looks,
        "passed": len(results),
        "errors": errors,
        "same": sum(one == prints[0] for one in prints),
        "left": _left(mark),
    }


def _left(mark: str, patience: float = 30.0) -> int:
    """How many processes of a measurement do not end by themselves."""
    limit = time.monotonic() + patience
    while True:
        count = 0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == mark:
                    count += process.status() != psutil.STATUS_ZOMBIE
        if not count or time.monotonic() > limit:
            return count
        time.sleep(0.5)


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was measured; 0 where all learners passed and none was disturbed."""
    parser = parser_of("classroom", __doc__)
    parser.add_argument("--learners", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--lesson", default="03")
    parser.add_argument("--lang", choices=catalog.LANGUAGES, default="ko")
    parser.add_argument("--record", type=Path, help="put the rows into this file")
    args = parser.parse_args(argv)
    for learners in args.learners:
        if not 1 <= learners <= 1000:
            raise ValueError(f"learners={learners}: give numbers from 1 to 1000")
    lesson = catalog.find_lesson(args.lesson, catalog.course_root())
    rows = []
    for learners in args.learners:
        rows.append(classroom(learners, lesson, args.lang))
        if args.record:
            _record(args.record, lesson, rows[-1])
    print(f"lesson {lesson} ({args.lang}), all at once, on {machine.cores()} cores")
    heads = ("learners", "passed", "the same", "seconds", "CPU seconds", "GB", "left")
    print(text_table(heads, [_line(row) for row in rows]))
    for row in rows:
        if row["full"]:
            print(
                f"{row['learners']} learners: the memory ran out, all were ended", file=sys.stderr
            )
        for error in row["errors"]:
            print(f"{row['learners']} learners: {error}", file=sys.stderr)
    well = all(row["passed"] == row["same"] == row["learners"] and not row["left"] for row in rows)
    return 0 if well else 1


def _line(row: dict[str, Any]) -> list[str]:
    cells = [row["learners"], row["passed"], row["same"], row["seconds"], row["cpu_s"]]
    return [*map(str, cells), f"{row['memory'] / 1e9:.2f}", str(row["left"])]


def _record(path: Path, lesson: str, row: dict[str, Any]) -> None:
    """Put a row into the file in place of the one for as many learners, if it has one."""
    before = json.loads(path.read_text("utf-8")) if path.exists() else {}
    rows = before["rows"] if before.get("lesson") == lesson else []
    now = datetime.now(UTC).date().isoformat()
    kept = [old for old in rows if old["learners"] != row["learners"]]
    gib = machine.memory_bytes() / 2**30
    record = {
        "about": "So many learners run a lesson at the same moment; memory is PSS, in bytes.",
        "command": "dlcourse bench classroom --learners N --record data/classroom.json",
        "lesson": lesson,
        "machine": f"{machine.cores()} CPU cores, {gib:.0f} GiB, "
        f"{platform.system()} {platform.machine()}",
        "versions": f"dlcourse {__version__}, Python {platform.python_version()}",
        "rows": sorted([*kept, {"date": now, **row}], key=lambda one: one["learners"]),
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
