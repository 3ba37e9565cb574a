"""MLX's ring: the numbers of one process, and nothing left running however a run ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import cloudpickle
import numpy as np
import psutil
import pytest

from dlcourse.corpus import Corpus
from dlcourse.peers import mlx_ring
from dlcourse.ranks.errors import RankError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # MLX's ranks cannot import this file

needs_mlx = pytest.mark.skipif(
    bool(mlx_ring.missing()) and "CI" not in os.environ, reason=mlx_ring.missing()
)


def left() -> list[str]:
    found = psutil.Process().children(recursive=True)
    return [" ".join(p.cmdline()) for p in found if "mlx_ring" in " ".join(p.cmdline())]


def rank_sum(group):
    import mlx.core as mx

    return mx.distributed.all_sum(mx.ones(3) * (group.rank() + 1), group=group).tolist()


def job(group, name):
    import mlx.core as mx

    if name == "raises" and group.rank() == 1:
        raise ValueError("no such layer")
    if name == "unread" and group.rank() == 1:
        exec(compile("raise ValueError('no source')", "<a cell>", "exec"))
    if name == "killed" and group.rank() == 1:
        os.kill(os.getpid(), 9)
    if name == "leaves" and group.rank() == 0:
        return None  # never sends, and its end of the ring is closed
    if name == "hangs" and group.rank() == 0:
        time.sleep(120)
    mx.eval(mx.distributed.all_sum(mx.ones(1 << 20), group=group))
    return None


@needs_mlx
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_the_ring_adds_up(num_ranks):
    total = float(sum(range(1, num_ranks + 1)))
    assert mlx_ring.run_ring(rank_sum, num_ranks=num_ranks) == [[total] * 3] * num_ranks
    assert not left()


@needs_mlx
def test_data_parallel_training_is_that_of_one_process():
    """float32, other order of adding: apart by its rounding, after 4 steps below 1e-5."""
    rows = mlx_ring.rows_of(Corpus(limit=100_000).bytes, steps=4, sequences=8, block=16)
    (alone,) = mlx_ring.run_ring(mlx_ring.train, rows, num_ranks=1)
    for losses in mlx_ring.run_ring(mlx_ring.train, rows, num_ranks=2):
        np.testing.assert_allclose(losses, alone, atol=1e-5)
    assert alone[-1] < alone[0] - 0.01  # it learns


@needs_mlx
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises", r"^MLX rank 1 raised ValueError: no such layer, line \d+"),
        ("killed", r"^MLX rank 1 was ended by signal 9 \(SIGKILL\); the others were ended"),
        ("leaves", r"^MLX rank 1 raised RuntimeError: \[ring\] connection to a peer was lost"),
        ("unread", r"^MLX rank 1 raised ValueError: no source, line 1$"),
        ("hangs", r"not over after 8 s, so all MLX ranks were ended: of 2 ranks \[0, 1\]"),
    ],
)
def test_a_run_that_fails_says_why_and_leaves_nothing(name, says):
    with pytest.raises(RankError, match=says):
        mlx_ring.run_ring(job, name, num_ranks=2, time_limit=8 if name == "hangs" else 60)
    assert not left()


@needs_mlx
def test_ranks_end_with_the_notebook(tmp_path):
    """The process that called is killed; its ranks read the end of their pipe."""
    code = (
        "import sys, time; from dlcourse.peers.mlx_ring import run_ring\n"
        "def job(group, path):\n"
        "    import os, time, pathlib\n"
        "    pathlib.Path(path, str(group.rank())).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        f"run_ring(job, {str(tmp_path)!r}, num_ranks=2, time_limit=500)\n"
    )
    notebook = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 300
    while len([p for p in tmp_path.iterdir() if p.read_text()]) < 2:
        assert notebook.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    notebook.kill()
    notebook.wait()
    end = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_ranks": 0}, "num_ranks=0: give a whole number of at least 1"),
        ({"num_ranks": True}, "num_ranks=True: give"),
        ({"num_ranks": 10**6}, "num_ranks=1000000: the memory here holds at most"),
        ({"time_limit": 0}, "time_limit=0: give seconds, more than 0"),
    ],
)
def test_bad_arguments_start_nothing(arguments, says):
    with pytest.raises(ValueError, match=says):
        mlx_ring.run_ring(rank_sum, **arguments)


def test_without_mlx_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(mlx_ring, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'mlx is not installed: pip install "mlx\[cpu\]"'):
        mlx_ring.run_ring(rank_sum)


@needs_mlx
def test_ranks_that_do_not_divide_the_batch_are_refused():
    rows = mlx_ring.rows_of(np.zeros(1000, np.uint8), steps=2, sequences=3, block=8)
    with pytest.raises(RankError, match="2 ranks must divide the sequences"):
        mlx_ring.run_ring(mlx_ring.train, rows, num_ranks=2)
    with pytest.raises(ValueError, match="the text has 10 bytes, and 54 are needed"):
        mlx_ring.rows_of(np.zeros(10, np.uint8), steps=2, sequences=3, block=8)
