"""MPI's ranks: the same numbers as ours, and nothing left running however a run ends."""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import psutil
import pytest

from dlcourse import machine
from dlcourse.peers import mpi, mpi_memory
from dlcourse.ranks.errors import RankError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # MPI's ranks cannot import this file

needs_mpi = pytest.mark.skipif(bool(mpi.missing()) and "CI" not in os.environ, reason=mpi.missing())


def left() -> list[str]:
    """What runs in the name of this test process."""
    found = psutil.Process().children(recursive=True)
    return [" ".join(p.cmdline()) for p in found if "mpi" in " ".join(p.cmdline())]


def job(comm, name):
    if name == "raises" and comm.rank == 2:
        raise ValueError("no such expert")
    if name == "killed" and comm.rank == 1:
        os.kill(os.getpid(), 9)
    if name == "mismatch" and comm.rank == 0:
        return None  # never sends
    comm.recv(source=0)


@needs_mpi
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises", r"^MPI rank 2 raised ValueError: no such expert, line \d+"),
        ("killed", r"^a rank of MPI was ended by signal 9 \(SIGKILL\); mpiexec ended the others"),
        ("mismatch", r"rank 0 had finished\n  rank 1 was in recv|rank 1 was in job, line \d+"),
    ],
)
def test_a_run_that_fails_says_why_and_leaves_nothing(name, says, monkeypatch):
    removed = set()

    def remove(paths, remove=mpi._remove_memory):
        remove(paths)
        removed.update(os.path.basename(path) for path in paths if not os.path.exists(path))

    monkeypatch.setattr(mpi, "_remove_memory", remove)
    with pytest.raises(RankError) as caught:
        mpi.run_mpi(job, name, num_ranks=3, time_limit=5 if name == "mismatch" else 500)
    assert re.search(says, str(caught.value)), caught.value
    assert not left() and any(
        name.startswith("mpich_shm") for name in removed
    )  # MPICH leaves it where a job fails


DIES_IN_THE_START = """
import os
from pathlib import Path
from mpi4py import MPI
from dlcourse.peers.mpi import _shared_memory
Path({folder!r}, str(os.getpid())).write_text("\\n".join(_shared_memory()))
MPI.COMM_WORLD.Barrier()
os.kill(os.getpid(), 9)
"""


@needs_mpi
@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="memory as files")
def test_a_job_that_dies_in_mpis_own_start_leaves_nothing_and_takes_no_others(
    tmp_path, monkeypatch
):
    """The ranks end before they have told their files; other files of such names stay."""
    program = [sys.executable, "-c", DIES_IN_THE_START.format(folder=str(tmp_path))]
    monkeypatch.setattr(mpi, "python_without_the_folder", lambda *_: program)
    mine = f"/dev/shm/mpich_shm_test{os.getpid()}_"
    paths = {name: Path(mine + name) for name in ("earlier", "mapped", "open")}
    paths["another"] = Path(f"/dev/shm/other_mpich_shm_test{os.getpid()}")
    kept: list[Any] = []

    def begun(process, folder, num_ranks, wait=mpi._wait_until_begun):
        for name in ("mapped", "open", "another"):  # another job's, started a moment later
            paths[name].write_bytes(bytes(4096))
        with paths["mapped"].open("r+b") as file:
            kept.append(mmap.mmap(file.fileno(), 4096))
        kept.append(paths["open"].open("rb"))
        wait(process, folder, num_ranks)

    monkeypatch.setattr(mpi, "_wait_until_begun", begun)
    paths["earlier"].write_bytes(bytes(4096))
    try:
        with pytest.raises(RankError):
            mpi.run_mpi(_own_pid, num_ranks=2)
        told = {path for file in tmp_path.iterdir() for path in file.read_text().splitlines()}
        made = {path for path in told if not path.endswith("(deleted)")}
        assert len([*tmp_path.iterdir()]) == 2 and any("mpich_shm" in path for path in made)
        assert not [path for path in made if os.path.exists(path)]
        assert [name for name, path in paths.items() if not path.exists()] == []
    finally:
        for handle in kept:
            handle.close()
        for path in paths.values():
            path.unlink(missing_ok=True)
    assert not left()


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="memory as files")
def test_a_file_goes_once_its_last_user_has_gone():
    """A process that was just killed may have its memory for a moment longer."""
    path, before = Path(f"/dev/shm/mpich_shm_late{os.getpid()}"), mpi_memory.files_of_mpi()
    code = f"import mmap, sys; f = open({str(path)!r}, 'w+b'); f.write(bytes(4096)); f.flush()\n"
    code += "m = mmap.mmap(f.fileno(), 4096); f.close(); print('there', flush=True); input()"
    user = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert user.stdout is not None and user.stdout.readline() == b"there\n"
        assert mpi_memory.files_of_mpi().keys() - before.keys() >= {str(path)}
        assert str(path) not in mpi_memory.remove_abandoned(before, 0.2) and path.exists()
        threading.Timer(0.3, user.kill).start()
        assert str(path) in mpi_memory.remove_abandoned(before, 60) and not path.exists()
    finally:
        user.kill()
        user.wait()
        path.unlink(missing_ok=True)


def _own_pid(comm: Any) -> int:
    return os.getpid()


@needs_mpi
def test_in_a_job_of_two_machines_ranks_are_on_this_one(monkeypatch):
    """Lessons 02 and 08 in a job of Slurm: mpiexec went to srun, and nothing came back."""
    job = {"JOB_ID": "7", "JOBID": "7", "NNODES": "2", "JOB_NUM_NODES": "2", "NTASKS": "2"}
    job |= {"NODELIST": "a,b", "JOB_NODELIST": "a,b", "TASKS_PER_NODE": "1(x2)"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    pids = mpi.run_mpi(_own_pid, num_ranks=2, time_limit=300)
    assert len(set(pids)) == 2 and not left()


@needs_mpi
def test_the_five_collectives_give_what_ours_give():
    """Whole numbers, so that no order of adding makes a difference: equal to the bit."""
    from dlcourse import Ranks

    data = np.arange(4 * 12, dtype=np.float32).reshape(4, 12) % 7
    theirs = mpi.run_mpi(_theirs, data, num_ranks=4)
    with Ranks(4, device="cpu", default=False) as ranks:
        ours = ranks.run(_ours, data)
    for rank, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.keys() == other.keys()
        for name, found in mine.items():
            np.testing.assert_array_equal(found, other[name], err_msg=f"{name}, rank {rank}")
    assert not left()


def _theirs(comm, data):
    from dlcourse.peers.mpi_collectives import collectives_of

    return collectives_of(comm, data[comm.rank])


def _ours(data):
    import torch
    import torch.distributed as dist

    from dlcourse.collectives import direct
    from dlcourse.collectives.tree import tree_broadcast

    rank, size = dist.get_rank(), dist.get_world_size()
    x = torch.tensor(data[rank])
    part, gathered, swapped = torch.empty(len(x) // size), torch.empty_like(x), torch.empty_like(x)
    direct.reduce_scatter(part, x.clone())
    direct.all_gather(gathered, x.view(size, -1)[rank])
    direct.all_to_all(swapped, x)
    return {
        "all_reduce": direct.all_reduce(x.clone()).numpy(),
        "reduce_scatter": part.numpy(),
        "all_gather": gathered.numpy(),
        "all_to_all": swapped.numpy(),
        "broadcast": tree_broadcast(x.clone()).numpy(),
    }


@needs_mpi
def test_times_have_a_row_for_each_collective_and_size_and_count_as_ours_do():
    from dlcourse.peers.mpi_collectives import CALLS, collective_times

    found = mpi.run_mpi(collective_times, [4, 30], num_ranks=2)  # more are allowed, too
    assert found[0] == found[1]  # the slowest rank's time, in all
    rows = {(row["algorithm"], row["bytes"]): row for row in found[0]}
    assert set(rows) == {(name, size) for name in CALLS for size in (8, 32)}  # rounded up
    assert all(len(row["samples"]) == 10 and min(row["samples"]) > 0 for row in found[0])


@needs_mpi
def test_more_ranks_than_cores_start_and_what_they_print_is_shown(capfd):
    count = machine.cores() + 3
    assert mpi.run_mpi(_number, num_ranks=count) == list(range(count))
    assert capfd.readouterr().out == "from rank 1\n"


def _number(comm):
    if comm.rank == 1:
        print("from rank 1")
    return comm.rank


def _sleeps(comm):
    time.sleep(600)


def _first_ends(comm):
    if comm.rank:
        comm.recv(source=0)


PROGRAM = """
import sys; sys.path.insert(0, {tests!r})
from test_mpi import {function}
from dlcourse.peers.mpi import run_mpi
run_mpi({function}, num_ranks=2, time_limit=500)
"""


@needs_mpi
@pytest.mark.parametrize(
    ("number", "function", "sign"),
    [(9, _sleeps, "*.pid"), (2, _sleeps, "*.pid"), (9, _first_ends, "0.result")],
    ids=["killed", "interrupted", "rank 0 has ended"],
)
def test_no_rank_outlives_the_notebook(number, function, sign, tmp_path):
    program = PROGRAM.format(tests=os.path.dirname(__file__), function=function.__name__)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    notebook = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        started = _until(
            lambda: len(list(tmp_path.glob("*/*.pid"))) == 2 and any(tmp_path.glob(f"*/{sign}"))
        )
        family = psutil.Process(notebook.pid).children(recursive=True)
        assert started and len(family) >= 3  # mpiexec and two ranks
        notebook.send_signal(number)
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
        assert _until(lambda: not list(tmp_path.iterdir()))  # no files either
    finally:
        notebook.kill()
        notebook.wait()


def _until(condition, seconds=60.0):
    """Whether it has become true; the limit is for a machine that is very busy."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_ranks": 0}, "num_ranks=0: give a whole number of at least 1"),
        ({"num_ranks": True}, "num_ranks=True"),
        ({"num_ranks": 5}, "num_ranks=5: the memory of this machine holds at most 4"),
        ({"time_limit": 0}, "time_limit=0: give seconds"),
        ({"no": "mpiexec"}, "mpi4py is here, but no mpiexec to start ranks with: pip install"),
        (
            {"no": "memory"},
            "MPICH takes 21 MiB in /dev/shm for them, and 16 MiB are free there",
        ),
        ({"no": "mpi4py"}, "mpi4py is not installed: pip install mpi4py mpich"),
    ],
)
def test_what_cannot_run_is_refused_in_words_before_anything_starts(arguments, says, monkeypatch):
    arguments = dict(arguments)
    absent = arguments.pop("no", None)
    monkeypatch.setattr(machine, "fitting_ranks", lambda: 4)
    monkeypatch.setattr(mpi, "find_spec", lambda name: None if absent == "mpi4py" else "there")
    monkeypatch.setattr(mpi, "_mpiexec", lambda: "mpiexec" if absent == "memory" else None)
    free = 16 << 20 if absent == "memory" else 1 << 30
    monkeypatch.setattr(mpi, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(mpi, "_start_and_wait", None)  # nothing could start
    with pytest.raises(ValueError, match=re.escape(says)):
        mpi.run_mpi(_number, **arguments)


@needs_mpi
def test_the_benchmark_writes_a_record_of_both(tmp_path, capsys):
    from dlcourse.bench import backends

    path = tmp_path / "backends.json"
    options = ["--ranks", "2", "--repeats", "1", "--collectives", "broadcast"]
    assert backends.main([*options, "--record", str(path)]) == 0
    record = json.loads(path.read_text())
    found = [(row["algorithm"], row["bytes"]) for row in record["rows"]]
    makers = ("mpi_broadcast", "shared_broadcast", "torch_broadcast")
    assert found == [(name, size) for name in makers for size in backends.SIZES]
    assert "mpich" in record["versions"] and record["mpi_dtypes"]["float32"] == "right"
    said = capsys.readouterr().out
    assert all(name in said for name in makers) and "no claim rests on it" in said


@pytest.mark.parametrize(
    ("code", "who"),
    [
        (11, "MPI rank 1 was ended by signal 11 (SIGSEGV)"),
        (9, "a rank of MPI was ended by signal 9"),
    ],
)
def test_a_rank_is_blamed_only_where_mpiexec_cannot_mean_one_that_it_ended_itself(
    code, who, tmp_path
):
    for rank, pid in enumerate((50, 51)):
        (tmp_path / f"{rank}.pid").write_text(str(pid))
    box = f"=   PID 51 RUNNING AT here\n=   EXIT CODE: {code}\n"
    assert mpi._what_happened(tmp_path, 2, code, box, 60).startswith(who)
