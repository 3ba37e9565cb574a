"""A rank: runs cells and functions in its main thread, while a second thread answers the notebook.

The second thread is what makes hangs explain themselves: Python cannot interrupt a collective that
waits in C++, but another thread can still tell where the main thread stands, which collectives it
has started, and cut the connections so that the wait ends in an error.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import faulthandler
import linecache
import os
import signal
import socket
import stat
import sys
import threading
import time
import traceback
import types
from collections import deque
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist
import zmq

from dlcourse.measure.recorder import Recorder
from dlcourse.ranks import waits
from dlcourse.ranks.agent import STREAMS, end_with_parent
from dlcourse.ranks.channel import Link, Wakeup, dumps_result, name_of
from dlcourse.ranks.display import describe, in_words, plain, shorten
from dlcourse.ranks.source import compiled
from dlcourse.ranks.waits import History, Waits

_DISTRIBUTED = dist.distributed_c10d.__file__
_WAITS = waits.__file__
_COMMUNICATION = {
    name
    for name in dist.distributed_c10d.__all__
    if not name.startswith(("get_", "is_")) and callable(getattr(dist.distributed_c10d, name))
}
_TORCH = os.path.dirname(torch.__file__)
_ABOVE = str(Path(__file__).parents[2]) + os.sep  # tracebacks name files as the course does


TRIM_AFTER = 0.2  # seconds; shorter cells have not taken much, and stay quick
MESSAGE_LIMIT = 5000  # characters of an exception's message


def main(request: dict) -> None:
    """The entry point that torch elastic calls in each rank."""
    Rank(request).serve()


class Rank:
    """One rank of a pool: its namespace, its process group and its link to the notebook."""

    def __init__(self, request: dict) -> None:
        self.launcher = request["launcher"]
        end_with_parent()
        if os.getppid() != self.launcher:  # it was ended before it could take us with it
            os._exit(1)
        self.rank = int(os.environ["RANK"])
        self.size = int(os.environ["WORLD_SIZE"])
        self.request = request
        self._redirect_output(Path(request["directory"]))
        self._wait_for_siblings(Path(request["directory"]))
        self.main_thread = threading.get_ident()
        self.running: int | None = None  # the number of the cell that runs now
        self.cut = False  # connections were cut to end a wait
        self.interrupt: int | None = None  # the cell that the notebook wants interrupted
        signal.signal(signal.SIGINT, self._on_interrupt)
        # The agent ends ranks with SIGKILL. Caught, for what is ignored stays so in what we start.
        signal.signal(signal.SIGTERM, lambda *_: None)
        _fork_as_a_notebook_does()
        _prefer_as_victim()
        torch.set_num_threads(request["threads"])
        self.generation = 0
        self.history = History()
        self.waits = Waits()
        self.waits.install()
        faulthandler.disable()  # elastic enables it; a crash is explained by the notebook's side
        self.store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=60),
        )
        self.foreign = {inode for _, inode in _sockets()}  # not to be cut with the group's
        self.device = self._device()
        self.recorder = Recorder(self.rank, self.size)
        self.inbox: SimpleQueue[dict] = SimpleQueue()
        self.outbox: deque[dict] = deque()
        self.wakeup = Wakeup()
        self.namespace = self._namespace()

    # -- set-up ---------------------------------------------------------------------------------

    def _redirect_output(self, directory: Path) -> None:
        """Send descriptors 1 and 2 to the agent; C++ and subprocesses included."""
        for target, stream in enumerate(STREAMS, start=1):
            pipe = os.open(directory / f"{self.rank}.{stream}", os.O_WRONLY)
            os.dup2(pipe, target)
            os.close(pipe)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the launcher made it empty
        sys.stdout = open(  # noqa: SIM115
            1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
        )
        sys.stderr = open(  # noqa: SIM115
            2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
        )

    def _wait_for_siblings(self, directory: Path) -> None:
        """Touch the store only when the launcher has forked all ranks.

        The store's thread lives in the launcher. While it answers one rank it may hold a lock of
        the C library; a rank that is forked at that moment would find it locked for ever.
        """
        (directory / f"{os.environ['LOCAL_RANK']}.up").touch()
        siblings = [directory / f"{r}.up" for r in range(int(os.environ["LOCAL_WORLD_SIZE"]))]
        limit = time.monotonic() + 120
        while not all(file.exists() for file in siblings) and time.monotonic() < limit:
            time.sleep(0.002)

    def _device(self) -> torch.device:
        kind = self.request["device"]
        if kind == "cuda":
            device = torch.device("cuda", self.rank % torch.cuda.device_count())
            torch.cuda.set_device(device)
            return device
        return torch.device(kind)

    def _namespace(self) -> dict[str, Any]:
        """The names a cell finds; a fresh `__main__`, so that its classes pickle by value."""
        module = types.ModuleType("__main__")
        module.__dict__.update(
            __builtins__=builtins,
            rank=self.rank,
            world_size=self.size,
            device=self.device,
            torch=torch,
            dist=dist,
            nn=torch.nn,
            F=torch.nn.functional,
        )
        sys.modules["__main__"] = module
        return module.__dict__

    def join(self) -> None:
        """Make the default process group, or make it anew after its connections were cut."""
        if dist.is_initialized():
            dist.destroy_process_group()
        self.generation += 1
        self.cut = False
        self.history.forget()
        self.waits.forget()
        dist.init_process_group(
            self.request["backend"],
            store=dist.PrefixStore(f"group{self.generation}", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self.request["timeout"]),
        )
        self.history.world = dist.group.WORLD.group_name
        _keep_descriptors()

    # -- the main thread ------------------------------------------------------------------------

    def serve(self) -> None:
        """Connect, then run what the notebook asks for until it says stop."""
        threading.Thread(target=self._control, name="control", daemon=True).start()
        try:
            self.join()
        except Exception:
            self._send("failed", text=traceback.format_exc())
            time.sleep(60)
            return
        # From here on modules are found where the notebook finds them: in its folder first.
        sys.path[:] = self.request["path"]
        self._send("ready", pid=os.getpid(), device=str(self.device), now_ns=time.monotonic_ns())
        while True:
            message = self.inbox.get()
            kind = message["kind"]
            if kind == "join":
                self._answer(message, self.join)
            elif kind == "value" and message["name"] not in self.namespace:
                self._send("answer", id=message["id"], missing=True)
            elif kind == "value":
                self._answer(message, lambda name=message["name"]: self.namespace[name])
            else:
                self._run(message)

    def _answer(self, message: dict, action: Any) -> None:
        try:
            try:
                self.running = message["id"]  # it may take long, and be interrupted
                value = dumps_result(action())
            finally:
                self.running = None
        except BaseException as error:
            words = in_words(error, str, MESSAGE_LIMIT)
            self._send("answer", id=message["id"], error=f"{type(error).__name__}: {words}")
        else:
            self._send("answer", id=message["id"], value=value)

    def _run(self, message: dict) -> None:
        """Run one cell or function and report how it ended."""
        record = message["record"]
        outcome: dict[str, Any] = {"id": message["id"]}
        self.running = message["id"]
        started = time.monotonic()
        try:
            if record:
                self.recorder.start()
            else:
                self.recorder.ledger.unseen = True
            if message["kind"] == "cell":
                outcome |= self._cell(message["source"], message["filename"])
            else:
                function, args, kwargs = cloudpickle.loads(message["call"])
                outcome["value"] = dumps_result(function(*args, **kwargs))
        except BaseException as error:
            # From here on an interrupt comes too late: no call may stand before this line, or the
            # signal is handled in that call, outside the `try`, and ends the rank.
            self.running = None
            outcome["error"] = self._explained(error)
        self.running = None
        outcome["wall_s"] = time.monotonic() - started
        try:
            if record:
                outcome["record"] = self.recorder.stop()
        except KeyboardInterrupt:
            pass
        except Exception as error:  # the recorder's fault must not end the rank
            outcome.setdefault("error", self._explained(error))
        outcome |= self._calls()
        self._flush(message["marker"])
        self._send("done", **outcome)
        if outcome["wall_s"] > TRIM_AFTER:
            _give_memory_back()

    def _cell(self, source: str, filename: str) -> dict[str, Any]:
        """Execute a cell; the value of its last expression is its result, as in a notebook."""
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        statements, last = compiled(source, filename)
        exec(statements, self.namespace)
        if last is None:
            return {}
        value = eval(last, self.namespace)
        if value is None or source.rstrip().endswith(";"):
            return {}
        self.namespace["_"] = value
        return describe(value)

    def _explained(self, error: BaseException) -> dict[str, Any]:
        """What `_failure` says, or that an exception is too odd for it: the rank lives on."""
        try:
            return self._failure(error)
        except BaseException as second:
            name = in_words(error, lambda e: type(e).__name__)
            message = f"its traceback cannot be shown ({in_words(second, str, 200)})"
            none = dict.fromkeys(("interrupted", "cut", "transport", "group_broken"), False)
            place = {"file": "", "line": None, "code": "", "collective": None}
            text = f"{name}: {message}"
            return {"type": name, "message": message, "traceback": text, **place, **none}

    def _failure(self, error: BaseException) -> dict[str, Any]:
        """What the notebook needs to explain an exception, its own frames left out."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if not f.filename.startswith(os.path.dirname(__file__))]
        in_cell = [f for f in own if f.filename.startswith("<ranks cell")]
        place = (in_cell or own or frames)[-1]
        shown = [f for f in own if not f.filename.startswith(_TORCH)] or own
        text = traceback.format_list(shown)
        text += [shorten(x, MESSAGE_LIMIT) for x in traceback.format_exception_only(error)]
        in_collective = any(f.filename in (_DISTRIBUTED, _WAITS) for f in frames)
        return {
            "type": type(error).__name__,
            "message": in_words(error, str, MESSAGE_LIMIT),
            "traceback": plain("".join(text)).replace(_ABOVE, ""),
            "file": place.filename,
            "line": place.lineno,
            "code": place.line or "",
            "interrupted": isinstance(error, KeyboardInterrupt),
            "cut": self.cut and isinstance(error, RuntimeError),
            "collective": _collective_call(error.__traceback__) if in_collective else None,
            "transport": _from_transport(error, in_collective),
            "group_broken": self.cut or _from_transport(error, in_collective),
        }

    def _flush(self, marker: bytes) -> None:
        """End the cell's output with a mark, so that the notebook knows it has all of it."""
        for number, stream in enumerate((sys.stdout, sys.stderr), start=1):
            try:
                stream.flush()
                os.write(number, marker)
            except Exception:
                pass  # the cell closed or replaced it; the notebook does not wait for long

    def _on_interrupt(self, *_: Any) -> None:
        """Raise KeyboardInterrupt in the cell that runs, if the notebook asked for it.

        Jupyter signals the whole process group; the notebook first looks where each rank stands.
        """
        if self.interrupt == self.running is not None:
            self.interrupt = None
            raise KeyboardInterrupt

    # -- the second thread ----------------------------------------------------------------------

    def _send(self, kind: str, **fields: Any) -> None:
        """Hand a message to the second thread, which owns the socket."""
        self.outbox.append({"kind": kind, **fields})
        self.wakeup.set()

    def _control(self) -> None:
        """Answer the notebook at any time, whatever the main thread does."""
        link = Link(self.request["address"], name_of(self.request["pool"], self.rank))
        poller = zmq.Poller()
        poller.register(link.socket, zmq.POLLIN)
        poller.register(self.wakeup.reader, zmq.POLLIN)
        while True:
            poller.poll(1000)
            if os.getppid() != self.launcher:
                os._exit(1)  # where Linux's death signal does not exist, this ends orphans
            self.wakeup.clear()
            while self.outbox:
                link.send(**self.outbox.popleft())
            while message := link.receive():
                kind = message["kind"]
                if kind == "where":
                    link.send("where", id=message["id"], where=self.where())
                elif kind == "sample":
                    link.send("sample", sample=self.sample())
                elif kind == "interrupt" and self.running == message["id"]:
                    self.interrupt = message["id"]
                    signal.pthread_kill(self.main_thread, signal.SIGINT)
                elif kind == "cut" and self.running == message["id"]:
                    self._cut_connections()
                elif kind == "exit":
                    os._exit(0)
                elif kind in ("cell", "call", "value", "join"):
                    self.inbox.put(message)

    def sample(self) -> dict[str, Any]:
        """What the live panel shows of this rank now."""
        return self.recorder.sample()

    def where(self) -> dict[str, Any]:
        """Where the main thread stands: line of the cell, collective, what it started last."""
        stack, collective = _stack_of(self.main_thread)
        cell = next((at for at in stack if at[0].startswith("<ranks cell")), None)
        line = cell and {
            "line": cell[1],
            "code": linecache.getline(*cell).strip(),
            "file": cell[0],
        }
        calls = self._calls()
        wait = self.waits.now
        # Another thread may make the call that this one waits for.
        others = len(threading.enumerate()) - 2
        return {
            "running": self.running is not None,
            "time_s": time.monotonic(),
            "cpu_s": time.process_time(),
            "line": line,
            "call": collective,
            "wait": wait and {**wait, "group": self.history.name(wait.get("group", ""))},
            "certain": self.history.complete and others <= 0,
            "innermost": "{}:{}".format(*stack[0]) if stack else None,
            **calls,
        }

    def _calls(self) -> dict[str, Any]:
        """What this rank has called in each group, for the notebook to compare with the others."""
        posted, lost = dict(self.waits.posted), self.waits.lost()
        return {
            "collectives": self.history.collectives(),
            "members": self.history.members(),
            "messages": {
                (way, self.history.name(group), peer, tag): (
                    None if lost is None or (way, group, peer, tag) in lost else count
                )
                for (way, group, peer, tag), count in posted.items()
            },
            "blind": lost is None,
        }

    def _cut_connections(self) -> None:
        """End a wait in Gloo: shut the connections to the other ranks down, so that it fails.

        Not the connection to the store, and none that the fork inherited: those are the launcher's.
        """
        self.cut = True
        for descriptor, inode in _sockets():
            if inode in self.foreign:
                continue
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as found:
                if found.family in (socket.AF_INET, socket.AF_INET6):
                    found.getpeername()  # fails for a socket that listens; Gloo needs that one
                    found.shutdown(socket.SHUT_RDWR)


def _sockets() -> list[tuple[int, int]]:
    """The open sockets of this process: descriptor and inode."""
    found = []
    for descriptor in range(3, 4096):
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISSOCK(status.st_mode):
                found.append((descriptor, status.st_ino))
    return found


def _stack_of(thread: int) -> tuple[list[tuple[str, int]], dict[str, Any] | None]:
    """Files and lines in which a thread stands, innermost first, and its collective.

    Reads no source and waits for nothing: who holds a frame holds its tensors, and while this
    thread waits the other one goes on, so that memory would be counted that nobody uses.
    """
    frame = sys._current_frames().get(thread)
    collective, stack = _collective_of(frame), []
    while frame is not None:
        stack.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return stack, collective


def _collective_of(frame: types.FrameType | None) -> dict[str, Any] | None:
    """The torch.distributed call that a stack stands in: its name, peer and tensor.

    Calls that only ask (`get_rank`, `is_initialized`) are none: they wait for nobody.
    """
    found = None
    while frame is not None:
        if frame.f_code.co_filename == _DISTRIBUTED and frame.f_code.co_name in _COMMUNICATION:
            values = frame.f_locals
            tensor = values.get("tensor")
            found = {"op": frame.f_code.co_name}
            if isinstance(tensor, torch.Tensor):
                found |= {"shape": list(tensor.shape), "dtype": str(tensor.dtype)[6:]}
            for peer in ("src", "dst"):
                if isinstance(values.get(peer), int):
                    found["peer"] = values[peer]
        frame = frame.f_back
    return found


def _collective_call(tb: types.TracebackType | None) -> dict[str, Any] | None:
    """The same for an exception: the torch.distributed call that raised it."""
    last = None
    while tb is not None:
        last, tb = tb.tb_frame, tb.tb_next
    return _collective_of(last)


def _from_transport(error: BaseException, in_collective: bool) -> bool:
    """Whether an error means that connections are lost, not a wrong argument."""
    signs = ["gloo/", "NCCL error"]  # also out of C++ code that waits unseen, such as DDP's
    if in_collective:
        signs += ["gloo", "NCCL", "Connection", "Timed out", "timed out"]
    return isinstance(error, RuntimeError) and any(
        sign in in_words(error, str, MESSAGE_LIMIT) for sign in signs
    )


def _keep_descriptors() -> None:
    """Gloo's sockets are not for the programs that a cell starts: they would keep them open."""
    for descriptor in range(3, 256):
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, False)


def _fork_as_a_notebook_does() -> None:
    """Have processes that are forked from this rank answer to signals as a new Python does.

    A signal that comes before the new process has its own handlers waits until it has.
    """
    ours = {signal.SIGINT, signal.SIGTERM}

    def in_child() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ours),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, ours),
        after_in_child=in_child,
    )


def _give_memory_back() -> None:
    """Return freed memory to the system: glibc keeps it, 50 MB a rank after a training cell."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _prefer_as_victim() -> None:
    """If memory runs out, have Linux end a rank, never the notebook or its server."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")
