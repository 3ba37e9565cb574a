"""A scenario, one trial of it, and what is looked for when the trial has ended.

Everything that a trial starts has the trial's mark among its variables, and its own folder for
temporary files: what is left running, or lying there, is this trial's.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from dlcourse.course.catalog import own_root

MARK = "DLCOURSE_SOAK"  # the variable
# How a trial ends. The first two are as it should be.
SUCCESS, NAMED, UNNAMED, LATE = "success", "named error", "unnamed error", "over its limit"
GOOD = (SUCCESS, NAMED)
ENDED_WITHIN = 30.0  # seconds for all that a trial has started to be gone, on a busy machine too


class TooLate(Exception):
    """What a trial waited for has not come within the limit."""


@dataclass
class Ending:
    """How a trial ended.

    Attributes:
        kind: SUCCESS, NAMED, UNNAMED or LATE.
        said: the error's first words, or what succeeded.
        seconds: from the fault to this end.
        figures: what was measured on the way, of long trials.
    """

    kind: str
    said: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Trial:
    """One trial.

    Attributes:
        number: which one; it seeds `chance`, so that it can be had again.
        size: of how many units: pools, cells; 1 for most.
        lessons: whether whole lessons are run, or a few small cells.
        limit: seconds from the fault to the end.
        place: a folder of its own.
    """

    scenario: str
    number: int
    size: int
    lessons: bool
    limit: float
    place: Path
    mark: str
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.scenario}.{self.number}")
        (self.place / "tmp").mkdir()

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of all that the trial starts."""
        outer = {n: v for n, v in os.environ.items() if not n.startswith("SLURM")}
        path = os.pathsep.join(filter(None, [str(own_root()), outer.get("PYTHONPATH")]))
        return {
            **outer,
            MARK: self.mark,
            "TMPDIR": str(self.place / "tmp"),
            "PYTHONPATH": path,
            "TORCHINDUCTOR_CACHE_DIR": str(self.place / "inductor"),  # torch's, one for all
            "IPYTHONDIR": str(self.place / "ipython"),
            "DLCOURSE_LEARNER": str(self.place / "learner"),
            "DLCOURSE_PANEL": "off",
            "DLCOURSE_LANG": "en",
            **more,
        }

    def start(
        self, command: Sequence[str], cwd: Path | None = None, more: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own; what it says goes to a file, see `said`."""
        with (self.place / "said").open("ab") as file:
            return subprocess.Popen(
                command,
                env=self.environment(**more or {}),
                cwd=cwd or self.place,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        """All that the commands have said."""
        try:
            return (self.place / "said").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def until(self, condition: Callable[[], object], seconds: float) -> None:
        """Wait for a condition; raises TooLate."""
        limit = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > limit:
                raise TooLate
            time.sleep(0.02)

    def processes(self) -> list[psutil.Process]:
        """Those that run with this trial's mark."""
        return marked(self.mark)

    def left_running(self) -> list[str]:
        """Wait for all to end; what has not is named, and killed."""
        limit = time.monotonic() + ENDED_WITHIN
        while (left := self.processes()) and time.monotonic() < limit:
            time.sleep(0.05)
        names = [role(process) for process in left]
        for _ in range(100):
            for process in self.processes():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            if not self.processes():
                break
            time.sleep(0.05)
        return names


@dataclass(frozen=True)
class Scenario:
    """What is done again and again.

    Attributes:
        name: of the scenario.
        count: how many units the whole soak has.
        unit: what is counted.
        limit: seconds from the fault to the end of what it hit.
        trial: does it once.
        each: how many units one trial has at most.
        needs: what is missing on this machine, in words; "" if nothing.
    """

    name: str
    count: int
    unit: str
    limit: float
    trial: Callable[[Trial], Ending]
    each: int = 1
    needs: Callable[[], str] = lambda: ""


def fine(line: dict[str, Any]) -> bool:
    """Whether a trial, by its line of the record, ended as it should and left nothing."""
    return line["ending"] in GOOD and not line["left_running"] and not line["left_files"]


def marked(mark: str) -> list[psutil.Process]:
    """The processes that have this mark among their variables; those that have ended are none."""
    found = []
    for process in psutil.process_iter(["pid"]):
        with suppress(psutil.Error, OSError):
            if (
                process.environ().get(MARK) == mark
                and process.status() != psutil.STATUS_ZOMBIE
                and process.pid != os.getpid()
            ):
                found.append(process)
    return found


def role(process: psutil.Process) -> str:
    """ "kernel", "agent", "launcher", "rank", or a program's name."""
    agent = "dlcourse.ranks.agent"
    try:
        line = " ".join(process.cmdline())
        if "ipykernel_launcher" in line:
            return "kernel"
        if agent not in line:
            return f"{process.name()} {line[:80]}"
        above = 0
        for parent in process.parents():  # the agent's forks have its command line
            above += agent in " ".join(parent.cmdline())
        return ("agent", "launcher")[above] if above < 2 else "rank"
    except psutil.Error:
        return "a process that has ended"


SHARED = ("mpich_shm", "ucx_shm", "torch_")  # how names of what lessons have there begin


def in_shared_memory() -> set[str]:
    """Files of /dev/shm that may be a trial's."""
    with suppress(OSError):
        return {name for name in os.listdir("/dev/shm") if name.startswith(SHARED)}
    return set()


def unused(names: set[str]) -> list[str]:
    """Those files of /dev/shm that no process uses, and that nobody takes away.

    Others on this machine may have theirs, and may just be about to remove them.
    """
    limit = time.monotonic() + ENDED_WITHIN
    while names := names & in_shared_memory():
        used = ""
        for maps in Path("/proc").glob("[0-9]*/maps"):
            with suppress(OSError):
                used += maps.read_text(errors="replace")
        names = {name for name in names if f"/dev/shm/{name}" not in used}
        if time.monotonic() > limit:
            break
        time.sleep(0.5)
    return sorted(f"/dev/shm/{name}" for name in names)


def run_trial(scenario: Scenario, number: int, size: int, lessons: bool) -> dict[str, Any]:
    """Do one trial and look at what it has left; returns its line of the record.

    A KeyboardInterrupt ends it, and all that it has started.
    """
    place = Path(tempfile.mkdtemp(prefix="soak"))
    mark = f"{os.getpid()}.{place.name}"
    trial = Trial(scenario.name, number, size, lessons, scenario.limit, place, mark)
    shared = in_shared_memory()
    started = time.monotonic()
    left: list[str] = []
    try:
        try:
            ending = scenario.trial(trial)
        except TooLate as late:
            ending = Ending(LATE, str(late) or _last_line(trial.said()), scenario.limit)
        except BaseException:
            for process in trial.processes():
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            raise
        if ending.kind in GOOD and ending.seconds > scenario.limit:
            ending.kind = LATE
        if ending.kind == LATE:  # what hangs is not "left" as well
            for process in trial.processes():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        left = trial.left_running()
        files = sorted(f.name for f in (place / "tmp").iterdir())
        files += unused(in_shared_memory() - shared)
    finally:
        for process in trial.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(place, ignore_errors=True)
    return {
        "scenario": scenario.name,
        "trial": number,
        "size": size,
        "lessons": lessons,
        "ending": ending.kind,
        "said": ending.said[:400],
        "seconds": round(ending.seconds, 2),
        "wall_s": round(time.monotonic() - started, 1),
        "left_running": left,
        "left_files": files,
        "figures": ending.figures,
    }


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def named(error: str, said: str) -> bool:
    """Whether an error, by its class's name and words, is one of the course's own."""
    if error in ("RankError", "RanksInterrupted", "NotInRanks", "NoRanks", "CellError"):
        return True
    return any(words in said for words in OWN_WORDS)


# Of RuntimeErrors while ranks start, and of what a lesson says when a cell fails in another way
# than it shows.
OWN_WORDS = (
    "the ranks did not start",
    "the ranks ended while they started",
    "could not start:",
    "the process that starts ranks",
    "expected a failure that says",
    "the machine gives no sign any more",
    "was lost at the start",
)
