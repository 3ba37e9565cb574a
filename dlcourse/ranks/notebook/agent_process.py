"""The notebook's side of the agents: starts them once, keeps them for later pools, ends them.

There is one on each machine of the run: one as a rule.
"""

from __future__ import annotations

import atexit
import itertools
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from dlcourse.ranks import machines
from dlcourse.ranks.directories import new_directory, remove
from dlcourse.ranks.messaging import MessageServer, agent_identity
from dlcourse.ranks.new_process import environment, python_without_the_folder
from dlcourse.ranks.notebook import stop
from dlcourse.words.strings import t

START_LIMIT = 300.0  # seconds for the agent to import torch, also from a slow disk


class AgentProcess:
    """The agents of this notebook kernel, and the server that they and all ranks connect to.

    Attributes:
        machines: on which they are.
        lost: numbers of machines whose agent has gone.
        address: of the server, for ranks on several machines.
        temporary: folder of the ranks' temporary files here; it goes with the agent.
    """

    _current: AgentProcess | None = None

    def __init__(self) -> None:
        self._receivers: dict[int, Callable[[int | None, dict[str, Any]], None]] = {}
        self._numbers = itertools.count(1)
        self._ready = threading.Event()
        self.owner = os.getpid()
        self.machines = machines.of_this_run()
        self.hosts: dict[int, str] = {}  # of the agents that are ready
        self.lost: set[int] = set()
        self.server = MessageServer(self._on_message, self._on_lost)
        self.directory = new_directory()
        self.temporary: Path | None = None
        self.channel: Path | None = None
        if self.machines.folder is None:
            self.address = self.server.bind(self.directory)
        else:
            self.channel = self._open_channel(self.machines.folder)
            self.address = str(self.channel)
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - has no name, so nothing is left of it
        function = "dlcourse.ranks.agent.agent:main"
        call = "main(sys.argv[1], int(sys.argv[2]))"
        self.process = subprocess.Popen(
            [*python_without_the_folder(function, call), self.address, str(self.owner)],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            env=self.environment(),
            process_group=0,  # a Stop must not reach it before it is ready for one
        )
        _close_in_forks(self.process)
        # Collected at once when it ends: ipykernel, told to shut down, ends the children first, and
        # takes one that is not collected for one that lives. Jupyter then kills the kernel.
        threading.Thread(target=self.process.wait, name="ranks-agent", daemon=True).start()
        self.others: subprocess.Popen[bytes] | None = None
        if self.machines.by_slurm:
            follower = python_without_the_folder(
                "dlcourse.ranks.agent.follower:main", "main(sys.argv[1])"
            )
            self.others = subprocess.Popen(
                [*self.machines.srun(), *follower, self.address],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                env=self.environment(),
                process_group=0,
            )

    def _open_channel(self, folder: Path) -> Path:
        """Listen for agents of other machines; returns the file that tells them where."""
        channel = self.server.bind_network(self.machines.address)
        name = f"{secrets.token_hex(8)}.json" if self.machines.by_slurm else "channel.json"
        channel.save(folder / name)
        return folder / name

    def environment(self) -> dict[str, str]:
        """The variables with which an agent starts."""
        return environment(self.machines.address)

    @classmethod
    def get(cls) -> AgentProcess:
        """The running agent of this process, started if there is none."""
        agent = cls._current
        if agent is not None and agent.owner == os.getpid() and agent.lost:
            gone = ", ".join(agent.name(node) for node in sorted(agent.lost))
            raise RuntimeError(f"{gone}: the machine gives no sign any more. {t('ranks.job_over')}")
        if agent is None or agent.owner != os.getpid() or agent.process.poll() is not None:
            if agent is not None and agent.owner == os.getpid():
                agent.close()
            cls._current = agent = cls()
            atexit.register(agent.close)
        return agent

    @classmethod
    def forks_here(cls) -> bool:
        """Whether this process has an agent, with torch imported, that forks ranks here alone."""
        agent = cls._current
        return (
            agent is not None
            and agent.owner == os.getpid()
            and agent.alive()
            and len(agent.machines.names) == 1
            and sys.platform == "linux"
            and os.environ.get("DLCOURSE_START_METHOD", "fork") == "fork"
        )

    def wait_until_ready(self) -> None:
        """Wait until all agents have imported torch; RuntimeError with their log if one ends."""
        for _ in range(int(START_LIMIT / 0.05)):
            stop.check()
            if self._ready.wait(0.05):
                remove(self.directory)
                return
            if self.process.poll() is not None or (self.others and self.others.poll() is not None):
                what = "ended"
                break
        else:
            what = f"was not ready within {START_LIMIT:.0f} s"
        missing = sorted(set(range(len(self.machines.names))) - set(self.hosts))
        self.close()
        where = f" on {', '.join(map(self.name, missing))}" if len(self.machines.names) > 1 else ""
        raise RuntimeError(f"the process that starts ranks{where} {what}:\n{self.log_tail()}")

    def name(self, node: int) -> str:
        """The name of a machine, as it calls itself."""
        return self.hosts.get(node) or self.machines.names[node]

    def add(self, receiver: Callable[[int | None, dict[str, Any]], None]) -> int:
        """Register who gets the messages of a new pool; returns the pool's number."""
        number = next(self._numbers)
        self._receivers[number] = receiver
        return number

    def remove(self, number: int) -> None:
        self._receivers.pop(number, None)

    def send(self, kind: str, *, to: int = 0, **fields: object) -> None:
        """Send a request to the agent of one machine."""
        self.server.send(agent_identity(to), {"kind": kind, **fields})

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
        self.server.close()  # other machines' agents end with the connection
        if self.channel is not None:
            self.channel.unlink(missing_ok=True)
        if self.others is not None:
            try:
                self.others.wait(5)
            except subprocess.TimeoutExpired:
                self.others.terminate()
                self.others.wait()
        self.log.close()
        remove(self.directory)
        if self.temporary is not None:
            remove(self.temporary)  # an agent that was killed has not
        if AgentProcess._current is self:
            AgentProcess._current = None

    def _on_message(self, identity: bytes, message: dict[str, Any]) -> None:
        if message["kind"] == "agent":
            node = int(identity.partition(b":")[2])
            self.hosts[node] = message["host"]
            if node == 0:
                self.temporary = Path(message["temporary"])
            if len(self.hosts) == len(self.machines.names):
                self._ready.set()
            return
        if identity.startswith(b"agent:"):
            number, rank = message["pool"], None
        else:
            pool, _, index = identity.partition(b":")
            number, rank = int(pool), int(index)
        receiver = self._receivers.get(number)
        if receiver is not None:
            receiver(rank, message)

    def _on_lost(self, identity: bytes) -> None:
        """Another machine gives no sign any more, or its agent has ended."""
        node = int(identity.partition(b":")[2])
        self.lost.add(node)
        for receiver in list(self._receivers.values()):
            receiver(None, {"kind": "machine_lost", "node": node})


def _close_in_forks(process: subprocess.Popen[bytes]) -> None:
    """A fork of the notebook must not hold the agent's pipe open when the notebook has ended."""
    found = weakref.ref(process)

    def close() -> None:
        agent = found()
        if agent is not None and agent.stdin is not None:
            agent.stdin.close()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=close)
