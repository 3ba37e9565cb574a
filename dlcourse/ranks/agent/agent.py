"""The agent: one process a machine that has torch imported and starts ranks on request.

It connects to the notebook's server and waits. For each pool it forks a launcher, which calls torch
elastic's `elastic_launch`, which forks the ranks: nothing is imported twice, so a pool starts in a
fraction of the time of `import torch`. Where forking is not safe (macOS, CUDA already in use)
elastic spawns the ranks instead.

The agent ends with the notebook, however that ends: it watches its process, and a pipe that only
the notebook holds open. Neither it nor a launcher looks for modules in the learner's folder, where
a `random.py` or `torch.py` may lie: the ranks do, once they are up. It drains the output of all
ranks, so a flood never blocks one, and what a rank wrote before it crashed still arrives.
"""

from __future__ import annotations

import gc
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import zmq

from dlcourse.ranks.agent.launcher import start_launcher, start_method
from dlcourse.ranks.directories import new_directory, remove
from dlcourse.ranks.messaging import STREAMS, MessageClient, agent_identity
from dlcourse.ranks.new_process import adopt
from dlcourse.ranks.os_processes import adopt_orphans, exists, exit_status, sentinel


@dataclass
class PoolProcesses:
    """What the agent knows of one running pool."""

    number: int
    launcher: int
    directory: Path
    pipes: dict[int, tuple[int, str]] = field(default_factory=dict)  # descriptor -> rank, stream
    pids: dict[int, int] = field(default_factory=dict)  # rank -> process id
    sentinels: dict[int, int] = field(default_factory=dict)  # descriptor -> rank


class Agent:
    """Starts, watches and ends pools; forwards what their ranks print.

    Args:
        address: of the notebook's server.
        notebook: its process; None on another machine, where the connection's end tells.
        node: the number of this machine.
    """

    def __init__(self, address: str, notebook: int | None, node: int = 0) -> None:
        self.node = node
        self.client = MessageClient(address, agent_identity(node))
        self.pools: dict[int, PoolProcesses] = {}
        self.temporary = new_directory()  # of all ranks: they are killed, and cannot clear up
        self.poller = zmq.Poller()
        self.poller.register(self.client.socket, zmq.POLLIN)
        self.notebook: Any = None
        if notebook is None:
            self.notebook = self.client.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        else:
            self.poller.register(0, zmq.POLLIN)
            self.notebook = sentinel(notebook)
        if self.notebook is not None:
            self.poller.register(self.notebook, zmq.POLLIN)

    def serve(self) -> None:
        """Answer requests until the notebook is gone."""
        known = {"host": socket.gethostname(), "temporary": str(self.temporary)}
        self.client.send("agent", pid=os.getpid(), **known)
        while True:
            printed = False
            for source, _ in self.poller.poll(1000 if self.pools else None):
                if source == self.notebook or (source == 0 and not os.read(0, 1)):
                    return
                if source is self.client.socket:
                    while message := self.client.receive():
                        getattr(self, message.pop("kind"))(**message)
                else:
                    printed |= self._on_descriptor(source)
            if printed:
                time.sleep(0.001)  # let a flood gather, or each of its lines is a message
            self._reap()

    def start(self, **request: Any) -> None:
        """Start a launcher for a pool, with a pipe for each output of each rank."""
        number = request["pool"]
        if self.node:
            request["directory"] = str(new_directory())
        directory = Path(request["directory"])
        adopt(request["environment"], elsewhere=self.node > 0)
        os.environ["TMPDIR"] = str(self.temporary)
        request["start_method"], problem = start_method(request)
        if problem:
            self.client.send("refused", pool=number, reason=problem)
            return
        if request["start_method"] == "fork" and request.get("preload"):
            with suppress(Exception):  # ranks that need it will say what is wrong
                import_once([request["preload"]])
        pool = PoolProcesses(number, 0, directory)
        own = request["size"] // request["nodes"]
        for rank in range(request["node"] * own, (request["node"] + 1) * own):
            for stream in STREAMS:
                path = directory / f"{rank}.{stream}"
                os.mkfifo(path, 0o600)
                pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                pool.pipes[pipe] = (rank, stream)
        pool.launcher = start_launcher(request, pool.pipes)
        self.pools[number] = pool
        for pipe in pool.pipes:
            self.poller.register(pipe, zmq.POLLIN)

    def watch(self, pool: int, pids: dict[int, int]) -> None:
        """All ranks are connected: note their processes; no machine needs its files any longer."""
        state = self.pools.get(pool)
        if state is None:  # ended meanwhile
            return
        state.pids = pids
        for rank, pid in pids.items():
            try:
                ended = sentinel(pid)
            except ProcessLookupError:
                self.client.send("dead", pool=pool, rank=rank, status=None)
                continue
            if ended is not None:
                state.sentinels[ended] = rank
                self.poller.register(ended, zmq.POLLIN)
        remove(state.directory)

    def end(self, pool: int) -> None:
        """End a pool's processes now and take back all that it used."""
        state = self.pools.pop(pool, None)
        if state:
            processes = [state.launcher, *state.pids.values()]
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            limit = time.monotonic() + 1.0
            while time.monotonic() < limit and any(map(exists, processes)):
                time.sleep(0.002)
                self._reap()
            for descriptor in [*state.pipes, *state.sentinels]:
                self._close(descriptor)
            remove(state.directory)
        self.client.send("ended", pool=pool)

    def _on_descriptor(self, descriptor: int) -> bool:
        """Handle a pipe or a sentinel that has something to tell; whether it was output."""
        for pool in self.pools.values():
            if descriptor in pool.pipes:
                self._forward(pool, descriptor)
                return True
            if descriptor in pool.sentinels:
                rank = pool.sentinels.pop(descriptor)
                status = exit_status(pool.pids[rank])
                self._close(descriptor)
                for pipe, (owner, _) in list(pool.pipes.items()):
                    if owner == rank:
                        self._forward(pool, pipe)
                self.client.send("dead", pool=pool.number, rank=rank, status=status)
                return False
        return False

    def _forward(self, pool: PoolProcesses, pipe: int) -> None:
        rank, stream = pool.pipes[pipe]
        try:
            data = os.read(pipe, 1 << 18)
        except BlockingIOError:
            return
        if data:
            self.client.send("output", pool=pool.number, rank=rank, stream=stream, data=data)
            _keep(rank, data)
            return
        del pool.pipes[pipe]  # every process that could write to it has ended
        self._close(pipe)
        alive = {owner for owner, _ in pool.pipes.values()}
        if rank not in alive and not hasattr(os, "pidfd_open"):
            self.client.send("dead", pool=pool.number, rank=rank, status=None)

    def _close(self, descriptor: int) -> None:
        with suppress(KeyError):
            self.poller.unregister(descriptor)
        os.close(descriptor)

    def _reap(self) -> None:
        """Collect ended children; a launcher that ended by itself takes its pool with it."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for pool in list(self.pools.values()):
                if pool.launcher == pid:
                    self.client.send("launcher_ended", pool=pool.number)

    def close(self) -> None:
        """End everything."""
        for number in list(self.pools):
            self.end(number)
        remove(self.temporary)


def _keep(rank: int, data: bytes) -> None:
    """In a job, what each rank prints is also kept in a file, less the marks of cells' ends."""
    if folder := os.environ.get("DLCOURSE_RANK_LOGS"):
        with suppress(OSError), (Path(folder) / f"rank-{rank}.log").open("ab") as log:
            log.write(MARK.sub(b"", data))


MARK = re.compile(rb"\0[0-9a-f]{24}\n")
PRELOADED = (
    "torch.distributed.launcher.api",
    # Every optimizer step and DDP import torch's compiler: 70 MB and seconds in each rank, if it
    # is not here already.
    "torch._dynamo",
    "dlcourse.measure.recorder",
    "dlcourse.ranks.agent.rendezvous",
    "dlcourse.ranks.worker.worker",
)


def import_once(names: Iterable[str]) -> None:
    """Import what ranks need, once; its pages stay shared by all ranks that are forked."""
    gc.disable()  # imports leave no garbage; looking for it would cost a tenth of the time
    try:
        for name in names:
            import_module(name)
        gc.collect()
    finally:
        gc.enable()
        gc.freeze()  # the collector of a rank then leaves the shared pages untouched


def _terminate(*_: object) -> None:
    """End; once, for ipykernel sends several of these, and another would break off the clearing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def main(address: str, notebook: int) -> None:
    """Serve the notebook's server at an address until the notebook, a process, has ended."""
    # Jupyter's interrupt reaches the whole process group: ranks are interrupted by request only,
    # and the agent joins the notebook's group when an interrupt cannot end it any more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        os.setpgid(0, os.getpgid(notebook))
    signal.signal(signal.SIGTERM, _terminate)
    adopt_orphans()  # ranks whose launcher was ended are collected here
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(0))
    import_once(PRELOADED)
    if os.getppid() != notebook or (select.select([0], [], [], 0)[0] and not os.read(0, 1)):
        return  # the notebook is gone already
    agent = Agent(address, notebook)
    try:
        with suppress(SystemExit):
            agent.serve()
    finally:
        agent.close()
    os._exit(0)  # taking torch apart would cost half a second, in which a kernel cannot end
