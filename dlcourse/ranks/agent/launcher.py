"""The launcher: one process a pool, in which torch elastic starts the pool's ranks.

The agent forks it, with torch imported. Where forking is not safe (macOS, CUDA already in use) it
is a new Python, and elastic spawns the ranks instead of forking them.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlcourse.ranks.new_process import python_without_the_folder
from dlcourse.ranks.os_processes import end_with_parent


def start_method(request: dict[str, Any]) -> tuple[str, str | None]:
    """How to start the ranks, and what is wrong with the device asked for, if anything."""
    import torch

    device, size = request["device"], request["size"] // request["nodes"]
    gpus = torch.cuda.device_count()
    if device == "cuda" and gpus == 0:
        return "", "device='cuda': torch sees no GPU here. Use device='auto' or 'cpu'."
    if device == "mps" and not torch.backends.mps.is_available():
        return "", "device='mps': torch sees no Apple GPU here. Use device='auto' or 'cpu'."
    if device == "auto":
        request["device"] = "cuda" if gpus >= size else "cpu"
    backend = "nccl" if request["device"] == "cuda" and gpus >= size else "gloo"
    if request.setdefault("backend", backend) != backend:  # as the first machine has it
        host = socket.gethostname()
        return "", f"{host} has {gpus} GPUs for {size} ranks, other machines of this job have more."
    forking = sys.platform == "linux" and not torch.cuda.is_initialized()
    method = os.environ.get("DLCOURSE_START_METHOD") or ("fork" if forking else "spawn")
    return method, None


def start_launcher(request: dict[str, Any], pipes: Iterable[int]) -> int:
    """Fork the launcher, or start it as a new Python where a fork is not safe; its process id.

    pipes: descriptors of the agent that the launcher inherits and must not hold.
    """
    parent = os.getpid()
    if request["start_method"] != "fork":
        call = "in_launcher(*pickle.loads(bytes.fromhex(sys.argv[1])))"
        arguments = pickle.dumps((request, parent, [])).hex()
        function = "dlcourse.ranks.agent.launcher:in_launcher"
        command = [*python_without_the_folder(function, call), arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE).pid
    sys.stdout.flush()
    sys.stderr.flush()
    launcher = os.fork()
    if launcher == 0:
        in_launcher(request, parent, list(pipes))
    return launcher


def in_launcher(request: dict[str, Any], parent: int, pipes: list[int]) -> None:
    """The launcher's whole life; `pipes` are the agent's, inherited and not ours."""
    status = 1
    try:
        end_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        for pipe in pipes:
            os.close(pipe)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with suppress(OSError, TypeError):  # a folder that is gone
            os.chdir(request["folder"])
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)  # input() in a rank ends at once instead of waiting for ever
        os.environ["OMP_NUM_THREADS"] = str(request["threads"])
        tempfile.tempdir = None  # the agent's; TMPDIR is the ranks'
        launch(request)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def launch(request: dict[str, Any]) -> None:
    """Run one pool's ranks under torch elastic until they end (in the launcher process)."""
    from dataclasses import fields

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from dlcourse.ranks.agent import rendezvous
    from dlcourse.ranks.worker import worker

    signals: dict[str, Any] = {}
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM"
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"  # as many ranks on each machine
    if "signals_to_handle" in {f.name for f in fields(LaunchConfig)}:  # torch 2.13, not 2.11
        signals["signals_to_handle"] = "SIGTERM"
    request["launcher"] = os.getpid()
    config = LaunchConfig(
        min_nodes=request["nodes"],
        max_nodes=request["nodes"],
        nproc_per_node=request["size"] // request["nodes"],
        run_id=f"dlcourse{request['pool']}",
        rdzv_backend=rendezvous.register(),
        rdzv_endpoint=request["meeting"],
        rdzv_configs={"node": request["node"]},
        local_addr=request["meeting"].rpartition(":")[0],
        max_restarts=0,
        monitor_interval=1.0,  # the agent notices a dead rank itself, in milliseconds
        start_method=request["start_method"],
        logs_specs=DefaultLogsSpecs(log_dir=str(Path(request["directory"]) / "logs")),
        **signals,
    )
    elastic_launch(config, worker.main)(request)
