"""The notebook's side of the agent: starts it once, keeps it for later pools, ends it."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from dlcourse.ranks.messaging import AGENT, MessageServer
from dlcourse.ranks.new_process import environment, python_without_the_folder
from dlcourse.ranks.notebook import stop

START_LIMIT = 120.0  # seconds for the agent to import torch on a slow machine


class AgentProcess:
    """The agent of this notebook kernel, and the server that it and all ranks connect to."""

    _current: AgentProcess | None = None

    def __init__(self) -> None:
        self._receivers: dict[int, Callable[[int | None, dict[str, Any]], None]] = {}
        self._numbers = itertools.count(1)
        self._ready = threading.Event()
        self.owner = os.getpid()
        self.server = MessageServer(self._on_message)
        self.directory = new_directory()
        address = self.server.bind(self.directory)
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - has no name, so nothing is left of it
        function = "dlcourse.ranks.agent.agent:main"
        call = "main(sys.argv[1], int(sys.argv[2]))"
        self.process = subprocess.Popen(
            [*python_without_the_folder(function, call), address, str(self.owner)],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            env=environment(),
            process_group=0,  # a Stop must not reach it before it is ready for one
        )
        _close_in_forks(self.process)

    @classmethod
    def get(cls) -> AgentProcess:
        """The running agent of this process, started if there is none."""
        agent = cls._current
        if agent is None or agent.owner != os.getpid() or agent.process.poll() is not None:
            if agent is not None and agent.owner == os.getpid():
                agent.close()
            cls._current = agent = cls()
            atexit.register(agent.close)
        return agent

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

    def add(self, receiver: Callable[[int | None, dict[str, Any]], None]) -> int:
        """Register who gets the messages of a new pool; returns the pool's number."""
        number = next(self._numbers)
        self._receivers[number] = receiver
        return number

    def remove(self, number: int) -> None:
        self._receivers.pop(number, None)

    def send(self, kind: str, **fields: object) -> None:
        self.server.send(AGENT, {"kind": kind, **fields})

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
        self.server.close()
        self.log.close()
        remove(self.directory)
        if AgentProcess._current is self:
            AgentProcess._current = None

    def _on_message(self, identity: bytes, message: dict[str, Any]) -> None:
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
