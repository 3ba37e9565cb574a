"""Ranks of MLX, Apple's array library, joined in its ring: what torch's MPS device has not.

    losses = run_ring(train, corpus_rows, num_ranks=2)     # def train(group, rows): ...

On Macs the same calls run on the GPU of each, over Ethernet or Thunderbolt; here MLX's CPU build
runs them in several processes of one machine. Each is told by its environment who it is and where
the ring's addresses are:

    MLX_RANK=1 MLX_HOSTFILE=[["127.0.0.1:40001"], ["127.0.0.1:40002"]]

No rank outlives the call: a time limit ends them all, and each reads a pipe whose other end is the
notebook's, so that it ends when the notebook does.

Source: MLX 0.32, "Distributed Communication" and "Launching Distributed Programs".
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from dlcourse import machine
from dlcourse.ranks.errors import RankError
from dlcourse.ranks.new_process import python_without_the_folder

INSTALL = 'pip install "mlx[cpu]"'  # on a Mac: mlx
GRACE = 2.0  # seconds that a rank gets to end by itself


def missing() -> str:
    """What is not installed here, in words; "" where MLX can run."""
    return "" if find_spec("mlx") else f"mlx is not installed: {INSTALL}"


def run_ring(
    function: Callable[..., Any], *args: Any, num_ranks: int = 2, time_limit: float = 60.0
) -> list[Any]:
    """Call ``function(group, *args)`` in new processes; returns what each has returned.

    Args:
        function: takes MLX's group and ``args``; may be defined in a cell. What it returns must
            be plain data: ``x.tolist()``, not an array of MLX's.
        num_ranks: 1 runs without a ring.
        time_limit: seconds for all of it. Then every rank is ended.

    Raises:
        ValueError: MLX is not installed, or a number that makes no sense; nothing has started.
        RankError: a rank raised, was ended, or did not end in time; all others have been ended.
    """
    if isinstance(num_ranks, bool) or not isinstance(num_ranks, int) or num_ranks < 1:
        raise ValueError(f"num_ranks={num_ranks!r}: give a whole number of at least 1")
    if num_ranks > (fitting := machine.fitting_ranks()):
        raise ValueError(f"num_ranks={num_ranks}: the memory here holds at most {fitting}")
    if not 0 < time_limit < float("inf"):
        raise ValueError(f"time_limit={time_limit!r}: give seconds, more than 0")
    if lacking := missing():
        raise ValueError(lacking)
    with tempfile.TemporaryDirectory(prefix="dlcourse-mlx-") as name:
        folder = Path(name)
        (folder / "job").write_bytes(cloudpickle.dumps((function, args)))
        (folder / "hosts.json").write_text(json.dumps(_addresses(num_ranks)))
        statuses = _start_and_wait(folder, num_ranks, time_limit)
        results = [folder / f"{rank}.result" for rank in range(num_ranks)]
        if not all(path.exists() for path in results):
            raise RankError(_what_happened(folder, statuses, time_limit))
        return [pickle.loads(path.read_bytes()) for path in results]


def _addresses(num_ranks: int) -> list[list[str]]:
    """For each rank one address of this machine that is free now."""
    with ExitStack() as stack:  # all at once, so that no two are the same
        sockets = [stack.enter_context(socket.socket()) for _ in range(num_ranks)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]


def _start_and_wait(folder: Path, num_ranks: int, time_limit: float) -> list[int | None]:
    """How each rank ended by itself; None where it had to be ended. No rank is left."""
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        try:
            for rank in range(num_ranks):
                output = stack.enter_context((folder / f"{rank}.output").open("wb"))
                hosts = {"MLX_HOSTFILE": str(folder / "hosts.json"), "MLX_RANK": str(rank)}
                alone = num_ranks == 1
                program = python_without_the_folder(
                    "dlcourse.peers.mlx_ring:_rank", f"_rank({str(folder)!r}, {rank}, {alone})"
                )
                processes.append(
                    subprocess.Popen(
                        program,
                        stdin=subprocess.PIPE,  # open as long as we live; see `_end_with_notebook`
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **({} if alone else hosts)},
                    )
                )
            return _wait(processes, time.monotonic() + time_limit)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
            for process in processes:
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                if process.stdin is not None:
                    process.stdin.close()


def _wait(processes: list[subprocess.Popen[bytes]], end: float) -> list[int | None]:
    """Until all have ended; or one has failed, and the others would wait for it; or until ``end``.

    Returns:
        The exit statuses, None of those that still run.
    """
    while time.monotonic() < end:
        statuses = [process.poll() for process in processes]
        if None not in statuses or any(statuses):
            return statuses
        time.sleep(0.01)
    return [process.poll() for process in processes]


def _what_happened(folder: Path, statuses: list[int | None], time_limit: float) -> str:
    """The cause first: a rank whose neighbour has gone fails as well."""
    for rank, status in enumerate(statuses):
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            return f"MLX rank {rank} was ended by signal {-status} ({name}); the others were ended"
    errors = {rank: folder / f"{rank}.error" for rank in range(len(statuses))}
    raised = {rank: path.read_text() for rank, path in errors.items() if path.exists()}
    if raised:
        causes = {rank: told for rank, told in raised.items() if "[ring]" not in told} or raised
        return "\n".join(f"MLX rank {rank} raised {told}" for rank, told in causes.items())
    waiting = [rank for rank, status in enumerate(statuses) if status is None]
    if waiting:
        return (
            f"not over after {time_limit:g} s, so all MLX ranks were ended: "
            f"of {len(statuses)} ranks {waiting} had not finished"
        )
    said = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.output")))
    return f"a rank ended without a result; the ranks said:\n{said.strip()[-1000:]}"


# In a rank


def _rank(folder_name: str, rank: int, alone: bool) -> None:
    """What each process runs."""
    folder = Path(folder_name)
    threading.Thread(target=_end_with_notebook, daemon=True).start()
    try:
        import mlx.core as mx

        group = mx.distributed.init() if alone else mx.distributed.init(strict=True, backend="ring")
        function, args = pickle.loads((folder / "job").read_bytes())
        result = pickle.dumps(function(group, *args))
        (folder / "partial").with_suffix(f".{rank}").write_bytes(result)
        (folder / "partial").with_suffix(f".{rank}").rename(folder / f"{rank}.result")
    except BaseException as error:
        _, *frames = traceback.extract_tb(error.__traceback__)
        # Of a function that was sent here from a notebook's cell there is no source to read.
        where = f", line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
        where = where.removesuffix(": ")
        told = "".join(traceback.format_exception_only(error)).strip()
        (folder / f"{rank}.error").write_text(f"{told}{where}")
        raise SystemExit(1) from None


def _end_with_notebook() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)  # nobody waits for a result any more


# A training for it


def average_gradients(group: Any, gradients: Any) -> Any:
    """The mean over the ranks: one ring all-reduce for each array. What DDP does, in MLX."""
    import mlx.core as mx
    from mlx.utils import tree_map

    return tree_map(
        lambda grad: mx.distributed.all_sum(grad, group=group) / group.size(), gradients
    )


def train(
    group: Any, rows: np.ndarray, *, steps: int = 4, width: int = 32, lr: float = 0.3
) -> list[float]:
    """A small language model over bytes, data parallel: each rank takes its part of every batch.

    Args:
        rows: text as bytes, (steps, sequences, tokens + 1); the ranks divide the sequences.

    Returns:
        The loss of each step over the whole batch, the same in every rank.

    Raises:
        ValueError: the ranks do not divide the sequences, or there are fewer steps than asked for.
    """
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.optimizers import SGD

    if rows.shape[1] % group.size() or len(rows) < steps:
        raise ValueError(
            f"rows of {rows.shape[1]} sequences and {len(rows)} steps: {group.size()} ranks must "
            f"divide the sequences, and {steps} steps are asked for"
        )
    mx.random.seed(0)  # the same model in every rank
    model = nn.Sequential(nn.Embedding(256, width), nn.Linear(width, width), nn.Linear(width, 256))
    optimizer = SGD(learning_rate=lr)

    def loss_of(model: Any, tokens: Any, targets: Any) -> Any:
        return nn.losses.cross_entropy(model(tokens), targets, reduction="mean")

    losses = []
    mine = rows.shape[1] // group.size()
    for step in range(steps):
        part = mx.array(
            rows[step, group.rank() * mine : (group.rank() + 1) * mine].astype(np.int32)
        )
        loss, gradients = nn.value_and_grad(model, loss_of)(model, part[:, :-1], part[:, 1:])
        optimizer.update(model, average_gradients(group, gradients))
        losses.append((mx.distributed.all_sum(loss, group=group) / group.size()).item())
        mx.eval(model.parameters())
    return losses


def rows_of(text: np.ndarray, *, steps: int, sequences: int, block: int) -> np.ndarray:
    """The first bytes of a text as batches for ``train``: (steps, sequences, block + 1)."""
    needed = steps * sequences * (block + 1)
    if len(text) < needed:
        raise ValueError(f"the text has {len(text)} bytes, and {needed} are needed")
    return np.asarray(text[:needed]).reshape(steps, sequences, block + 1)
