"""The processes of a pool: how they are started, spoken to and ended."""

from __future__ import annotations

import itertools
import math
import os
import queue
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from dlcourse import machine
from dlcourse.ranks.diagnosis.report import MACHINE_LOST
from dlcourse.ranks.directories import new_directory, remove
from dlcourse.ranks.machines import LOOPBACK
from dlcourse.ranks.messaging import rank_identity
from dlcourse.ranks.notebook import stop
from dlcourse.ranks.notebook.agent_process import AgentProcess
from dlcourse.words.strings import t

START_LIMIT = 180.0
ROOM = 1 << 14  # bytes: a launcher makes some folders and files of a few bytes for its ranks


class RankProcesses:
    """The ranks of a pool as the notebook sees them: may end, and be started afresh.

    Attributes:
        state: "stopped", "starting", "ready", "running" (a cell), or "lost": ended by a failure.
        life: the number of these processes; others after each start.
        pids: rank -> process id.
        dead: rank -> wait status, of ranks that died by themselves.
        backend_device: "cpu", "cuda" or "mps", found by the ranks; before that what was asked for.
        oom_kills: how often memory had run out in this container when the ranks started.
        listener: who gets each message that `receive` finds and that is not a death.
        changed: called, from any thread, when ranks die or end while no cell runs; with the ranks
            that died.
    """

    def __init__(self, size: int, device: str, timeout: float, preload: str | None = None) -> None:
        self.size, self.device, self.timeout, self.preload = size, device, timeout, preload
        self.state = "stopped"
        self.backend_device = device
        self.nodes = 1
        self.pids: dict[int, int] = {}
        self.dead: dict[int, int | None] = {}
        self.listener: Callable[[int | None, dict[str, Any]], None] | None = None
        self.changed: Callable[[Iterable[int]], None] = lambda died: None
        self._numbers = itertools.count(1)

    # -- start and end --------------------------------------------------------------------------

    def start(self) -> None:
        """Start all ranks and wait until they are up.

        Raises:
            KeyboardInterrupt: for a Stop.
            ValueError: for a device that this machine does not have.
            RuntimeError: if they do not come up, with what they said.
        """
        self._events: queue.SimpleQueue[tuple[int | None, dict[str, Any]]] = queue.SimpleQueue()
        self.pids, self.dead = {}, {}
        self.backend_device = self.device
        self.agent = AgentProcess.get()
        self.life = self.agent.add(self._arrived)
        self.state = "starting"
        directory = new_directory()
        several = self.agent.channel is not None
        self._address = self.agent.address if several else self.agent.server.bind(directory)
        self.nodes = self.agent.machines.used_for(self.size)
        try:
            self.agent.wait_until_ready()
            self.oom_kills = machine.out_of_memory_kills()
            self._request: dict[str, Any] = dict(
                pool=self.life,
                size=self.size,
                nodes=self.nodes,
                device=self.device,
                timeout=self.timeout,
                preload=self.preload,
                threads=machine.threads_per_rank(self.size // self.nodes),
                environment=self.agent.environment(),
                folder=_folder(),
                path=[entry for entry in sys.path if isinstance(entry, str)],
                directory=str(directory),
                address=self._address,
            )
            meeting = f"{self.agent.machines.address}:0"
            self.agent.send("start", node=0, meeting=meeting, **self._request)
            self._wait_for_ranks()
        except BaseException:
            self.end("stopped")
            raise
        finally:
            remove(directory)  # who is connected needs no file of it

    def _arrived(self, rank: int | None, message: dict[str, Any]) -> None:
        """Keep a message for whoever waits; a death is shown at once, also between cells."""
        self._events.put((rank, message))
        if message["kind"] == "machine_lost":
            for rank in self.on_machine(message["node"]):
                self._arrived(rank, {"kind": "dead", "rank": rank, "status": MACHINE_LOST})
        if message["kind"] == "dead" and self.state == "ready":
            self.changed([message["rank"]])

    def on_machine(self, node: int) -> list[int]:
        """The ranks of one machine."""
        own = self.size // self.nodes
        return [r for r in range(self.size) if r // own == node]

    def machine_names(self) -> list[str]:
        """For each rank the name of its machine; empty where there is one machine only."""
        if self.state == "stopped" or self.nodes == 1:
            return []
        own = self.size // self.nodes
        return [self.agent.name(r // own) for r in range(self.size)]

    def _wait_for_ranks(self) -> None:
        limit = time.monotonic() + START_LIMIT
        while len(self.pids) < self.size:
            stop.check()
            try:
                rank, message = self._events.get(timeout=0.05)
            except queue.Empty:
                if not self.agent.alive() or time.monotonic() > limit:
                    raise RuntimeError(self._start_failure("the ranks did not start")) from None
                continue
            kind = message["kind"]
            if kind == "ready" and rank is not None:
                self.pids[rank] = message["pid"]
                self.backend_device = message["device"].partition(":")[0]
            elif kind == "up":  # rank 0: the ranks of the other machines may come
                as_first = {k: message[k] for k in ("meeting", "device", "backend")}
                for node in range(1, self.nodes):
                    self.agent.send("start", to=node, node=node, **self._request | as_first)
            elif kind == "refused":
                raise ValueError(message["reason"])
            elif kind == "machine_lost":
                lost = self.agent.name(message["node"])
                raise RuntimeError(self._start_failure(f"machine {lost} was lost at the start"))
            elif kind == "failed":
                raise RuntimeError(f"rank {rank} could not start:\n{message['text']}")
            elif kind == "launcher_ended":
                raise RuntimeError(self._start_failure("the ranks ended while they started"))
        for node in range(self.nodes):
            pids = {rank: self.pids[rank] for rank in self.on_machine(node)}
            self.agent.send("watch", to=node, pool=self.life, pids=pids)
        self.state = "ready"

    def _start_failure(self, what: str) -> str:
        cause = _no_loopback() if self.nodes == 1 else ""
        cause = cause or _no_room()
        cause = f" {cause}" if cause else ""
        return f"{what}.{cause} The launcher's last words:\n{self.agent.log_tail()}"

    def end(self, state: str) -> None:
        """End the processes; quick, whatever they are doing."""
        died, self.state = list(self.dead), state
        with stop.DelayedStop():  # a Stop waits until they are gone
            if self.agent.alive():
                nodes = set(range(self.nodes)) - self.agent.lost
                for node in nodes:
                    self.agent.send("end", to=node, pool=self.life)
                limit, ended = time.monotonic() + 3, 0
                while time.monotonic() < limit and ended < len(nodes):
                    try:
                        ended += self._events.get(timeout=0.1)[1]["kind"] == "ended"
                    except queue.Empty:
                        if not self.agent.alive():
                            break
            self.agent.remove(self.life)
            if self.agent.channel is None:
                self.agent.server.unbind(self._address)
            self.pids, self.dead = {}, {}
            self.changed(died)

    def alive(self) -> bool:
        """Whether the agent lives, and with it the ranks that are not `dead`."""
        return self.agent.alive()

    # -- messages -------------------------------------------------------------------------------

    def next_number(self) -> int:
        """A number for a cell or a request."""
        return next(self._numbers)

    def send(self, rank: int, kind: str, **fields: Any) -> None:
        self.agent.server.send(rank_identity(self.life, rank), {"kind": kind, **fields})

    def ask(
        self,
        kind: str,
        ranks: Iterable[int] | None = None,
        *,
        limit: float = 10.0,
        answers: dict[int, dict[str, Any]] | None = None,
        **fields: Any,
    ) -> dict[int, dict[str, Any]]:
        """Send a request to ranks and collect the answers of those that do not stay silent."""
        self.asked = number = self.next_number()
        waiting = set(range(self.size) if ranks is None else ranks) - set(self.dead)
        for rank in waiting:
            self.send(rank, kind, id=number, **fields)
        answers = {} if answers is None else answers
        end = time.monotonic() + limit
        while waiting - set(answers) - set(self.dead) and time.monotonic() < end:
            self.collect(number, answers)
            if limit == math.inf and (self.dead or not self.alive()):
                break
        return answers

    def collect(self, number: int, answers: dict[int, dict[str, Any]]) -> None:
        """Note the answers to a request that have arrived."""
        for rank, message in self.receive(0.05):
            if message.get("id") == number and rank is not None:
                answers[rank] = message

    def receive(self, timeout: float) -> list[tuple[int | None, dict[str, Any]]]:
        """The messages that have arrived, after a wait for the first; `listener` sees all.

        Raises KeyboardInterrupt for a Stop.
        """
        found: list[tuple[int | None, dict[str, Any]]] = []
        stop.check()
        try:
            item = self._events.get(timeout=timeout)
            while True:
                found.append(item)
                item = self._events.get_nowait()
        except queue.Empty:
            pass
        for rank, message in found:
            if message["kind"] == "dead":
                self.dead[message["rank"]] = message["status"]
            elif self.listener is not None:
                self.listener(rank, message)
        return found

    def regroup(self) -> bool:
        """Make the process group anew in living ranks, so that their variables are kept."""
        answers = self.ask("join", limit=15.0)
        return len(answers) == self.size and not any("error" in a for a in answers.values())


def _no_loopback() -> str:
    """What is to be said where nothing can listen on the address of this machine for itself."""
    try:
        socket.create_server((LOOPBACK, 0)).close()
    except OSError as error:
        return t("ranks.no_loopback", address=LOOPBACK, error=os.strerror(error.errno or 0))
    return ""


def _no_room() -> str:
    """What is to be said where the disk of the temporary files is full: the log has no room there
    either."""
    folder = tempfile.gettempdir()
    with suppress(OSError):
        if shutil.disk_usage(folder).free < ROOM:
            return t("ranks.no_room", folder=folder)
    return ""


def _folder() -> str | None:
    """The folder that the notebook works in, unless it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None
