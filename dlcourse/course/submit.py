"""`dlcourse submit`: a lesson as a Slurm job over several machines, by submitit.

Submitit writes the batch script and starts one task on each machine, which does its part of a
`Job`. All that the job leaves is in its folder, which the machines share: the executed notebook and
its JSON, what each task and each rank has printed, and the state of the queue.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcourse.course.job import Job
from dlcourse.ranks.agent.follower import ENDED

LOOK = 2.0  # seconds between two looks at the queue
SETTLE = 20.0  # seconds for a shared folder to show what a job that has ended wrote


@dataclass(frozen=True)
class Wanted:
    """What is asked of Slurm.

    minutes: after which Slurm ends the job; it is started again from the lesson it was in.
    """

    nodes: int
    ranks_per_node: int
    gpus_per_node: int = 0
    partition: str | None = None
    account: str | None = None
    minutes: int = 60


class LessonTask:
    """What submitit runs on each machine of a job."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self.folder, self.command = folder, list(command)
        self.job: Job | None = None

    def __call__(self) -> int:
        os.environ["DLCOURSE_RANK_LOGS"] = str(self.folder / "ranks")
        self.job = Job(self.folder / "channel", self.command)
        return self.job.run()

    def checkpoint(self) -> Any:
        """Slurm takes the machines away: keep what there is, and go on with it when they are back.

        Called by submitit, in the first task, when its preemption signal comes.
        """
        from submitit.helpers import DelayedSubmission

        if self.job is not None:
            self.job.interrupt()
        return DelayedSubmission(LessonTask(self.folder, self.command))


def submit(command: Sequence[str], wanted: Wanted, out: Path, name: str) -> tuple[str, Path]:
    """Submit a `dlcourse run`; returns the job's number and its folder below `out`.

    Raises:
        ValueError: where submitit or Slurm is missing, or Slurm refuses the job.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError("submit needs submitit: pip install 'dlcourse[cluster]'") from None
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = (out / f"{name}-{stamp}").resolve()
    for below in ("", "log", "ranks"):
        (folder / below).mkdir(parents=True, mode=0o700)
    try:
        executor = submitit.AutoExecutor(folder=folder / "log", cluster="slurm")
        more: dict[str, Any] = {"gpus_per_node": wanted.gpus_per_node or None}
        more |= {"slurm_partition": wanted.partition, "slurm_account": wanted.account}
        executor.update_parameters(
            name=f"dlcourse-{name}",
            nodes=wanted.nodes,
            tasks_per_node=1,
            cpus_per_task=wanted.ranks_per_node,
            timeout_min=wanted.minutes,
            # From Slurm 22.05 on, srun takes no --cpus-per-task over from the job. A machine that
            # is lost must not take the others' results with it.
            slurm_srun_args=[
                f"--cpus-per-task={wanted.ranks_per_node}", "--cpu-bind=none", "--no-kill",
                "--kill-on-bad-exit=0",
            ],
            slurm_additional_parameters={"no-kill": True, "requeue": True},
            **{name: value for name, value in more.items() if value is not None},
        )  # fmt: skip
        run = [*command, "--out", str(folder), "--resume", "--no-progress"]
        job = executor.submit(LessonTask(folder, run))
    except (submitit.core.utils.FailedJobError, RuntimeError, OSError) as error:
        raise ValueError(f"Slurm takes no job: {str(error).strip()}") from None
    return job.job_id, folder


def follow(job: str, folder: Path, say: Callable[[str], None] = print) -> int:
    """Tell how a job goes, until it has ended: the queue's state, and the run's own lines.

    Returns:
        the command's exit status; 1 where it left none.
    """
    state, told, gone = "", 0, 0.0
    while True:
        now = queue_state(job)
        if now != state:
            say(f"job {job}: {now or 'has left the queue'}")
            state = now
        told = _tell_new(folder, told, say)
        if not now:
            gone = gone or time.monotonic()
            if (status := _status(folder)) is not None:
                _tell_new(folder, told, say)
                return status
            if time.monotonic() > gone + SETTLE:
                say(f"job {job} left no result; its own words are in {folder / 'log'}")
                return 1
        time.sleep(LOOK)


def queue_state(job: str) -> str:
    """What `squeue` says of a job, "" where it knows it no more."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%T %R"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _tell_new(folder: Path, told: int, say: Callable[[str], None]) -> int:
    """Say the lines of the run's progress that are new; returns how many there are.

    Another machine writes the file: its last line may be half there.
    """
    try:
        text = (folder / "progress.jsonl").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return told
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    for line in lines[told:]:
        with suppress(ValueError):  # of a full disk
            entry = json.loads(line)
            say(f"{entry['lesson']}: {entry['state']}")
    return len(lines)


def _status(folder: Path) -> int | None:
    """The exit status that the job's last start has left."""
    left = sorted((folder / "channel").glob(f"{ENDED}-*"), key=lambda f: int(f.name[6:]))
    words = left[-1].read_text() if left else ""
    return int(words) if words else None
