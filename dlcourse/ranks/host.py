"""The notebook's side of the agent: starts it once, keeps it for later pools, ends it."""

from __future__ import annotations

import atexit
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO

from dlcourse.ranks import stop
from dlcourse.ranks.channel import AGENT, Hub

FLIGHT_RECORDER_SIZE = 200  # entries: what each rank has called last
START_LIMIT = 120.0  # seconds for the agent to import torch on a slow machine


class Host:
    """The hub and the agent process of this notebook kernel."""

    _current: Host | None = None

    def __init__(self) -> None:
        self._receivers: dict[int, Callable[[int | None, dict], None]] = {}
        self._numbers = itertools.count(1)
        self._ready = threading.Event()
        self.owner = os.getpid()
        self.hub = Hub(self._on_message)
        self.directory = new_directory()
        address = self.hub.bind(self.directory)
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - has no name, so nothing is left of it
        call = "main(sys.argv[1], int(sys.argv[2]))"
        self.process = subprocess.Popen(
            [*python_without_the_folder(call), address, str(self.owner)],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            env=environment(),
            process_group=0,  # a Stop must not reach it before it is ready for one
        )
        _close_in_forks(self.process)

    @classmethod
    def get(cls) -> Host:
        """The running agent of this process, started if there is none."""
        host = cls._current
        if host is None or host.owner != os.getpid() or host.process.poll() is not None:
            if host is not None and host.owner == os.getpid():
                host.close()
            cls._current = host = cls()
            atexit.register(host.close)
        return host

    def wait_until_ready(self) -> None:
        """Wait until the agent has imported torch; RuntimeError with its log if it ends."""
        for _ in range(int(START_LIMIT / 0.05)):
            stop.check()
            if self._ready.wait(0.05):
                remove(self.directory)
                return
            if self.process.poll() is not None:
                break
        self.close()
        raise RuntimeError(f"the process that starts ranks ended:\n{self.log_tail()}")

    def add(self, receiver: Callable[[int | None, dict], None]) -> int:
        """Register who gets the messages of a new pool; returns the pool's number."""
        number = next(self._numbers)
        self._receivers[number] = receiver
        return number

    def remove(self, number: int) -> None:
        self._receivers.pop(number, None)

    def send_agent(self, kind: str, **fields: object) -> None:
        self.hub.send(AGENT, {"kind": kind, **fields})

    def alive(self) -> bool:
        return self.process.poll() is None

    def log_tail(self, size: int = 2000) -> str:
        """The end of what the agent, elastic and Gloo wrote about themselves."""
        try:
            end = self.log.seek(0, os.SEEK_END)
            self.log.seek(max(0, end - size))
            return self.log.read().decode(errors="replace")
        except (OSError, ValueError):
            return ""

    def close(self) -> None:
        """End the agent, and with it every rank."""
        if self.owner != os.getpid():  # a fork of the notebook does not own the agent
            return
        if self.process.stdin:
            self.process.stdin.close()  # the agent ends its pools when this pipe closes
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.hub.close()
        self.log.close()
        remove(self.directory)
        if Host._current is self:
            Host._current = None

    def _on_message(self, identity: bytes, message: dict) -> None:
        if message["kind"] == "agent":
            self._ready.set()
            return
        if identity == AGENT:
            number, rank = message["pool"], None
        else:
            pool, _, index = identity.partition(b":")
            number, rank = int(pool), int(index)
        receiver = self._receivers.get(number)
        if receiver is not None:
            receiver(rank, message)


def new_directory() -> Path:
    """A directory that only we can enter, with a path short enough for a socket's name."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="dlc", dir=base if len(base) < 60 else "/tmp"))


def remove(directory: Path) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)


def _close_in_forks(process: subprocess.Popen[bytes]) -> None:
    """A fork of the notebook must not hold the agent's pipe open when the notebook has ended."""
    found = weakref.ref(process)

    def close() -> None:
        agent = found()
        if agent is not None and agent.stdin is not None:
            agent.stdin.close()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=close)


def python_without_the_folder(call: str) -> list[str]:
    """A command that calls a function of the agent, whatever lies in the current folder.

    A `random.py` or a `torch.py` of the learner must not be taken for the modules of that name;
    `-P` leaves the folder out, and this package is found where it is, installed or not.
    """
    root, name = str(Path(__file__).resolve().parents[2]), call.partition("(")[0]
    code = (
        "import sys, pickle, importlib, typing; "  # before the root, where anything may lie
        f"root = {root!r}; sys.path.insert(0, root); import dlcourse; del sys.path[0]; "
        f"sys.path.append(root); from dlcourse.ranks.agent import {name}; {call}"
    )
    return [sys.executable, "-P", "-c", code]


def environment() -> dict[str, str]:
    """The notebook's variables, and settings that must be there before the agent imports torch."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {
        **os.environ,
        "TORCH_FR_BUFFER_SIZE": str(FLIGHT_RECORDER_SIZE),
        "GLOO_SOCKET_IFNAME": loopback,  # nothing listens on a network
        "NCCL_SOCKET_IFNAME": loopback,
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        "PYTHONUNBUFFERED": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # count GPUs without starting CUDA before a fork
    }
