"""Ranks of MPI, started by the lesson: a function runs in each, and its results come back.

    sums = run_mpi(rank_sum, num_ranks=4)      # def rank_sum(comm): ... comm.Allreduce(...)

MPI is a standard of calls (send, receive, all-reduce, ...) with several libraries behind it; here
it is MPICH, which pip installs, called through mpi4py. It brings its own way to start ranks:

    run_mpi ── mpiexec -n 4 python ... ──> 4 processes, each with MPI.COMM_WORLD
       ^                                        |
       └── a folder: results, errors, where each rank stands ──┘

No rank outlives the call, however it ends: rank 0 reads its standard input, whose other end is the
notebook's. When the notebook is gone, it reads the end, and ends all ranks.

Sources: MPI 4.1 standard (mpi-forum.org), chapter 6, collective communication; mpi4py 4 manual.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from shutil import disk_usage, rmtree, which
from typing import Any

import cloudpickle
import psutil

from dlcourse import machine
from dlcourse.peers.mpi_memory import NAMES, files_of_mpi, remove_abandoned
from dlcourse.ranks.errors import RankError
from dlcourse.ranks.new_process import python_without_the_folder
from dlcourse.words.units import human_bytes

INSTALL = "pip install mpi4py mpich"
GRACE = 2.0  # seconds that mpiexec gets to end its ranks by itself
_OF_A_JOB = ("SLURM", "PBS", "LSB", "PMI", "PMIX")
SHARED_BYTES = 21 * 2**18  # 5.25 MiB a rank; measured with MPICH and UCX of that package: 5.14
START_LIMIT = 120.0  # seconds until all ranks have begun, on a busy machine too


def missing(num_ranks: int = 4) -> str:
    """What is not installed here, or too small, in words; "" where so many ranks can run."""
    if find_spec("mpi4py") is None:
        return f"mpi4py is not installed: {INSTALL}"
    if _mpiexec() is None:
        return f"mpi4py is here, but no mpiexec to start ranks with: {INSTALL}"
    # With less memory than it wants, MPICH ends by a segmentation fault
    free = disk_usage("/dev/shm").free if os.path.ismount("/dev/shm") else sys.maxsize
    if free < num_ranks * SHARED_BYTES:
        return (
            f"num_ranks={num_ranks}: MPICH takes {human_bytes(num_ranks * SHARED_BYTES)} in "
            f"/dev/shm for them, and {human_bytes(free)} are free there: give at most "
            f"num_ranks={free // SHARED_BYTES}, or start the container with a larger --shm-size"
        )
    return ""


def run_mpi(
    function: Callable[..., Any], *args: Any, num_ranks: int = 4, time_limit: float = 60.0
) -> list[Any]:
    """Call ``function(comm, *args)`` in new MPI ranks; returns what each has returned.

    Args:
        function: takes ``mpi4py.MPI.COMM_WORLD`` and ``args``; may be defined in a cell.
        num_ranks: as many processes on this machine. MPI would start more than there are cores.
        time_limit: seconds for the function, once all ranks have begun. Then all of them are
            ended, and the error says where each stood.

    Raises:
        ValueError: MPI is not installed, or more ranks than the memory or /dev/shm holds; nothing
            has started.
        RankError: a rank raised, ended early, or did not end; all others have been ended.
    """
    if isinstance(num_ranks, bool) or not isinstance(num_ranks, int) or num_ranks < 1:
        raise ValueError(f"num_ranks={num_ranks!r}: give a whole number of at least 1")
    fitting = machine.fitting_ranks()
    if num_ranks > fitting:
        raise ValueError(
            f"num_ranks={num_ranks}: the memory of this machine holds at most {fitting}. "
            f"mpiexec itself would not refuse: give num_ranks={min(fitting, 4)}"
        )
    if not 0 < time_limit < float("inf"):
        raise ValueError(f"time_limit={time_limit!r}: give seconds, more than 0")
    if lacking := missing(num_ranks):
        raise ValueError(lacking)
    with tempfile.TemporaryDirectory(prefix="dlcourse-mpi-") as name:
        folder = Path(name)
        (folder / "job").write_bytes(cloudpickle.dumps((function, args, time_limit)))
        status = _start_and_wait(folder, num_ranks, time_limit)
        printed = (folder / "output").read_text(errors="replace")
        if status != 0:
            raise RankError(_what_happened(folder, num_ranks, status, printed, time_limit))
        if printed:
            print(printed, end="")
        return [pickle.loads((folder / f"{r}.result").read_bytes()) for r in range(num_ranks)]


def _mpiexec() -> str | None:
    """The one beside this Python first: it belongs to the library that mpi4py loads."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if os.access(beside, os.X_OK) else which("mpiexec")


def _start_and_wait(folder: Path, num_ranks: int, time_limit: float) -> int | None:
    """The exit status of mpiexec, None after the time limit; no rank is left in either case."""
    mpiexec = _mpiexec()
    assert mpiexec is not None
    program = python_without_the_folder("dlcourse.peers.mpi:_rank", f"_rank({str(folder)!r})")
    command = [mpiexec, "-n", str(num_ranks), *program]
    before = files_of_mpi()
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # stays open as long as we live; see `_end_with_notebook`
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
        )
        family = [psutil.Process(process.pid)]
        try:
            _wait_until_begun(process, folder, num_ranks)
            return process.wait(time_limit + GRACE)  # first the ranks write where they stand
        except subprocess.TimeoutExpired:
            return None
        finally:
            family += _children(family[0])
            if process.poll() is None:
                process.terminate()
            _, alive = psutil.wait_procs(family, timeout=GRACE)
            for left in alive:
                left.kill()  # psutil knows a process by its start time too: never another one
            process.wait()
            if process.stdin is not None:  # not before: at its end rank 0 removes the folder
                process.stdin.close()
            told = [*folder.glob("*.memory")]
            for names in told:
                _remove_memory(names.read_text().splitlines())
            if len(told) < num_ranks:  # one has ended in MPI's own start
                remove_abandoned(before)


def _shared_memory() -> list[str]:
    """Files in memory that this rank shares with others: MPICH's, and those of UCX below it.

    MPICH removes its own in MPI_Finalize, which a job that fails never reaches.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux
        return []
    paths = {line.split(maxsplit=5)[-1] for line in lines if " /dev/shm/" in line}
    return sorted(path for path in paths if Path(path).name.startswith(NAMES))


def _remove_memory(paths: list[str]) -> None:
    for path in paths:
        Path(path).unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    """Without a batch system's variables: in a job of several machines mpiexec would start ranks on
    all of them, by srun, and what the ranks share is a folder of this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_JOB)}
    # UCX, below MPICH, warns of every window that a rank leaves open
    return {"UCX_LOG_LEVEL": "error", **kept, "HYDRA_LAUNCHER": "fork", "OMP_NUM_THREADS": "1"}


def _wait_until_begun(process: subprocess.Popen[bytes], folder: Path, num_ranks: int) -> None:
    end = time.monotonic() + START_LIMIT
    while process.poll() is None and time.monotonic() < end:
        if len(list(folder.glob("*.stack"))) == num_ranks:
            return
        time.sleep(0.01)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


# In a rank


def _rank(folder_name: str) -> None:
    """What each process of mpiexec runs."""
    from mpi4py import MPI  # starts MPI, and ends it when Python ends

    folder, comm = Path(folder_name), MPI.COMM_WORLD
    together = comm.Dup()  # no call of the function's meets one of ours
    if comm.rank == 0:
        threading.Thread(target=_end_with_notebook, args=(folder,), daemon=True).start()
    try:
        (folder / f"{comm.rank}.pid").write_text(str(os.getpid()))
        (folder / f"{comm.rank}.memory").write_text("\n".join(_shared_memory()))
        function, args, time_limit = pickle.loads((folder / "job").read_bytes())
        with (folder / f"{comm.rank}.stack").open("w") as stack:
            faulthandler.dump_traceback_later(time_limit, file=stack)
            result = pickle.dumps(function(comm, *args))
            faulthandler.cancel_dump_traceback_later()
        (folder / f"{comm.rank}.result").write_bytes(result)
        # MPI's own end waits for all ranks too, but no other thread runs then: nobody would see
        # the notebook's end while rank 0 waits for one that never comes.
        together.Barrier()
    except BaseException as error:
        _, *frames = traceback.extract_tb(error.__traceback__)
        where = f", line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
        told = "".join(traceback.format_exception_only(error)).strip()
        with suppress(OSError):  # the notebook is gone, and the folder with it
            (folder / f"{comm.rank}.error").write_text(f"{told}{where}")
        comm.Abort(1)  # the others may be waiting for this one


def _end_with_notebook(folder: Path) -> None:
    """mpiexec gives its standard input to rank 0: at its end nobody waits for results any more."""
    while os.read(0, 4096):
        pass
    _remove_memory(_shared_memory())
    rmtree(folder, ignore_errors=True)
    from mpi4py import MPI

    MPI.COMM_WORLD.Abort(1)


# What to say of a run that failed


def _what_happened(
    folder: Path, num_ranks: int, status: int | None, printed: str, time_limit: float
) -> str:
    errors = {r: folder / f"{r}.error" for r in range(num_ranks)}
    raised = {r: path.read_text() for r, path in errors.items() if path.exists()}
    if raised:
        return "\n".join(f"MPI rank {r} raised {told}" for r, told in raised.items())
    if status is None:
        lines = [f"not over after {time_limit:g} s, so all MPI ranks were ended:"]
        lines += [f"  rank {r} {_stood(folder, r)}" for r in range(num_ranks)]
        return "\n".join(lines)
    if killed := _first_killed(folder, num_ranks, printed):
        rank, number = killed
        name = signal.Signals(number).name
        # mpiexec ends the others by SIGKILL, and may report one of these: only of another signal
        # it is sure whose it was
        who = "a rank of MPI" if number == signal.SIGKILL else f"MPI rank {rank}"
        return f"{who} was ended by signal {number} ({name}); mpiexec ended the others"
    last = "\n".join(printed.strip().splitlines()[-15:])
    return f"mpiexec ended with status {status} and said:\n{last}"


def _stood(folder: Path, rank: int) -> str:
    """The innermost line of a rank that is not this module's."""
    if (folder / f"{rank}.result").exists():
        return "had finished"
    path = folder / f"{rank}.stack"
    frames = re.findall(
        r'File "(.*)", line (\d+) in (\w+)', path.read_text() if path.exists() else ""
    )
    for file, line, name in frames:
        if not file.endswith("peers/mpi.py") and "threading" not in file:
            return f"was in {name}, line {line}"
    return "had not started the function"


def _first_killed(folder: Path, num_ranks: int, printed: str) -> tuple[int, int] | None:
    """(rank, signal), from the box that mpiexec prints about a process which a signal ended."""
    pid = re.search(r"PID (\d+) RUNNING", printed)
    code = re.search(r"EXIT CODE: (\d+)", printed)
    files = [folder / f"{r}.pid" for r in range(num_ranks)]
    pids = [path.read_text() if path.exists() else "" for path in files]
    if pid is None or code is None or pid[1] not in pids or not 0 < int(code[1]) < 65:
        return None
    return pids.index(pid[1]), int(code[1])
