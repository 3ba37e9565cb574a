"""The agent: one process a machine that has torch imported and starts ranks on request.

It connects to the notebook's hub and waits. For each pool it forks a launcher, which calls torch
elastic's `elastic_launch`, which forks the ranks: nothing is imported twice, so a pool starts in a
fraction of the time of `import torch`. Where forking is not safe (macOS, CUDA already in use)
elastic spawns the ranks instead.

The agent ends with the notebook, however that ends: it watches its process, and a pipe that only
the notebook holds open. Neither it nor a launcher looks for modules in the learner's folder, where
a `random.py` or `torch.py` may lie: the ranks do, once they are up. It drains the output of all
ranks, so a flood never blocks one, and what a rank wrote before it crashed still arrives.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import zmq

from dlcourse.ranks.channel import AGENT, Link
from dlcourse.ranks.host import python_without_the_folder

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
STREAMS = ("out", "err")


def _prctl(option: int, value: int) -> None:
    """Ask Linux for something about this process; other systems have no such call."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux)."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Pool:
    """What the agent knows of one running pool."""

    number: int
    launcher: int
    directory: Path
    pipes: dict[int, tuple[int, str]] = field(default_factory=dict)  # descriptor -> rank, stream
    pids: dict[int, int] = field(default_factory=dict)  # rank -> process id
    sentinels: dict[int, int] = field(default_factory=dict)  # descriptor -> rank


def launch(request: dict) -> None:
    """Run one pool's ranks under torch elastic until they end (in the launcher process)."""
    from dataclasses import fields

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from dlcourse.ranks import rendezvous, worker

    signals = {}
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM"
    if "signals_to_handle" in {f.name for f in fields(LaunchConfig)}:  # torch 2.13, not 2.11
        signals["signals_to_handle"] = "SIGTERM"
    request["launcher"] = os.getpid()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=request["size"],
        run_id=f"dlcourse{os.getpid()}",
        rdzv_backend=rendezvous.register(),
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=1.0,  # the agent notices a dead rank itself, in milliseconds
        start_method=request["start_method"],
        logs_specs=DefaultLogsSpecs(log_dir=str(Path(request["directory"]) / "logs")),
        **signals,
    )
    elastic_launch(config, worker.main)(request)


class Agent:
    """Starts, watches and ends pools; forwards what their ranks print."""

    def __init__(self, address: str, notebook: int) -> None:
        self.link = Link(address, AGENT)
        self.pools: dict[int, Pool] = {}
        self.poller = zmq.Poller()
        self.poller.register(self.link.socket, zmq.POLLIN)
        self.poller.register(0, zmq.POLLIN)
        self.notebook = _sentinel(notebook)
        if self.notebook is not None:
            self.poller.register(self.notebook, zmq.POLLIN)

    def serve(self) -> None:
        """Answer requests until the notebook is gone."""
        self.link.send("agent", pid=os.getpid())
        while True:
            printed = False
            for source, _ in self.poller.poll(1000 if self.pools else None):
                if source == self.notebook or (source == 0 and not os.read(0, 1)):
                    return
                if source is self.link.socket:
                    while message := self.link.receive():
                        getattr(self, message.pop("kind"))(**message)
                else:
                    printed |= self._on_descriptor(source)
            if printed:
                time.sleep(0.001)  # let a flood gather, or each of its lines is a message
            self._reap()

    def start(self, **request) -> None:
        """Start a launcher for a pool, with a pipe for each output of each rank."""
        number, directory = request["pool"], Path(request["directory"])
        _adopt(request["environment"])
        request["start_method"], problem = _start_method(request)
        if problem:
            self.link.send("refused", pool=number, reason=problem)
            return
        pool = Pool(number, 0, directory)
        for rank in range(request["size"]):
            for stream in STREAMS:
                path = directory / f"{rank}.{stream}"
                os.mkfifo(path, 0o600)
                pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                pool.pipes[pipe] = (rank, stream)
        pool.launcher = _start_launcher(request, pool)
        self.pools[number] = pool
        for pipe in pool.pipes:
            self.poller.register(pipe, zmq.POLLIN)

    def watch(self, pool: int, pids: dict[int, int]) -> None:
        """All ranks are connected: note their processes; the files are needed no longer."""
        state = self.pools.get(pool)
        if state is None:  # ended meanwhile
            return
        state.pids = pids
        for rank, pid in pids.items():
            try:
                sentinel = _sentinel(pid)
            except ProcessLookupError:
                self.link.send("dead", pool=pool, rank=rank, status=None)
                continue
            if sentinel is not None:
                state.sentinels[sentinel] = rank
                self.poller.register(sentinel, zmq.POLLIN)
        shutil.rmtree(state.directory, ignore_errors=True)

    def end(self, pool: int) -> None:
        """End a pool's processes now and take back all that it used."""
        state = self.pools.pop(pool, None)
        if state:
            processes = [state.launcher, *state.pids.values()]
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            limit = time.monotonic() + 1.0
            while time.monotonic() < limit and any(map(_exists, processes)):
                time.sleep(0.002)
                self._reap()
            for descriptor in [*state.pipes, *state.sentinels]:
                self._close(descriptor)
            shutil.rmtree(state.directory, ignore_errors=True)
        self.link.send("ended", pool=pool)

    def _on_descriptor(self, descriptor: int) -> bool:
        """Handle a pipe or a sentinel that has something to tell; whether it was output."""
        for pool in self.pools.values():
            if descriptor in pool.pipes:
                self._forward(pool, descriptor)
                return True
            if descriptor in pool.sentinels:
                rank = pool.sentinels.pop(descriptor)
                status = _exit_status(pool.pids[rank])
                self._close(descriptor)
                for pipe, (owner, _) in list(pool.pipes.items()):
                    if owner == rank:
                        self._forward(pool, pipe)
                self.link.send("dead", pool=pool.number, rank=rank, status=status)
                return False
        return False

    def _forward(self, pool: Pool, pipe: int) -> None:
        rank, stream = pool.pipes[pipe]
        try:
            data = os.read(pipe, 1 << 18)
        except BlockingIOError:
            return
        if data:
            self.link.send("output", pool=pool.number, rank=rank, stream=stream, data=data)
            return
        del pool.pipes[pipe]  # every process that could write to it has ended
        self._close(pipe)
        alive = {owner for owner, _ in pool.pipes.values()}
        if rank not in alive and not hasattr(os, "pidfd_open"):
            self.link.send("dead", pool=pool.number, rank=rank, status=None)

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
                    self.link.send("launcher_ended", pool=pool.number)

    def close(self) -> None:
        """End everything."""
        for number in list(self.pools):
            self.end(number)


def _sentinel(pid: int) -> int | None:
    """A descriptor that can be read when a process has ended; None where there is no such thing."""
    return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None


def _adopt(environment: dict[str, str]) -> None:
    """Have the variables that the notebook has now; what is started next inherits them."""
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _start_method(request: dict) -> tuple[str, str | None]:
    """How to start the ranks, and what is wrong with the device asked for, if anything."""
    import torch

    device, size = request["device"], request["size"]
    gpus = torch.cuda.device_count()
    if device == "cuda" and gpus == 0:
        return "", "device='cuda': torch sees no GPU here. Use device='auto' or 'cpu'."
    if device == "mps" and not torch.backends.mps.is_available():
        return "", "device='mps': torch sees no Apple GPU here. Use device='auto' or 'cpu'."
    if device == "auto":
        request["device"] = "cuda" if gpus >= size else "cpu"
    request["backend"] = "nccl" if request["device"] == "cuda" and gpus >= size else "gloo"
    forking = sys.platform == "linux" and not torch.cuda.is_initialized()
    method = os.environ.get("DLCOURSE_START_METHOD") or ("fork" if forking else "spawn")
    return method, None


def _start_launcher(request: dict, pool: Pool) -> int:
    """Fork the launcher, or start it as a new Python where a fork is not safe; its process id."""
    parent = os.getpid()
    if request["start_method"] != "fork":
        call = "in_launcher(*pickle.loads(bytes.fromhex(sys.argv[1])))"
        arguments = pickle.dumps((request, parent, [])).hex()
        command = [*python_without_the_folder(call), arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE).pid
    sys.stdout.flush()
    sys.stderr.flush()
    launcher = os.fork()
    if launcher == 0:
        in_launcher(request, parent, list(pool.pipes))
    return launcher


def in_launcher(request: dict, parent: int, pipes: list[int]) -> None:
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
        launch(request)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _exit_status(pid: int) -> int | None:
    """The wait status of a process that ended and is not yet collected, from /proc; else None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rsplit(")", 1)[1].split()[-1])


PRELOADED = (
    "torch.distributed.launcher.api",
    # Every optimizer step and DDP import torch's compiler: 70 MB and seconds in each rank, if it
    # is not here already.
    "torch._dynamo",
    "dlcourse.measure.recorder",
    "dlcourse.ranks.rendezvous",
    "dlcourse.ranks.worker",
)


def _preload() -> None:
    """Import what every rank needs, once; its pages stay shared by all ranks that are forked."""
    gc.disable()  # imports leave no garbage; looking for it would cost a tenth of the time
    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.enable()
    gc.freeze()  # the collector of a rank then leaves the shared pages untouched


def main(address: str, notebook: int) -> None:
    """Serve the hub at an address until the notebook, a process, has ended."""
    # Jupyter's interrupt reaches the whole process group: ranks are interrupted by request only,
    # and the agent joins the notebook's group when an interrupt cannot end it any more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        os.setpgid(0, os.getpgid(notebook))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # ranks whose launcher was ended are collected here
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(0))
    _preload()
    if os.getppid() != notebook or (select.select([0], [], [], 0)[0] and not os.read(0, 1)):
        return  # the notebook is gone already
    agent = Agent(address, notebook)
    try:
        agent.serve()
    finally:
        agent.close()
