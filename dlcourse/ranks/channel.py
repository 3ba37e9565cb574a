"""Messages between the notebook kernel, the agent and the ranks, over ZeroMQ.

Every message is a dictionary with a "kind". On one machine the socket is a file in a directory
that only its owner can enter, so whoever can connect is the owner, and may be unpickled.
"""

from __future__ import annotations

import io
import pickle
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle
import zmq

from dlcourse.ranks.display import in_words

AGENT = b"agent"


def name_of(pool: int, rank: int) -> bytes:
    """The socket identity of a rank."""
    return b"%d:%d" % (pool, rank)


class Unpicklable:
    """Stands in the notebook for an object that can only live in a rank; shows its repr."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class _Pickler(cloudpickle.Pickler):
    """Pickles results so that the notebook kernel needs no torch to read them.

    Tensors become NumPy arrays (bfloat16 and smaller floats as float32), torch's own objects
    (devices, dtypes, modules …) their repr. Functions and classes of cells travel by value.
    """

    def reducer_override(self, obj: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None:
            return super().reducer_override(obj)
        if isinstance(obj, torch.Tensor):
            tensor = obj.detach().cpu()
            if tensor.dtype.is_floating_point and tensor.element_size() < 4:
                tensor = tensor.float()
            return tensor.numpy().__reduce__()
        in_torch = type(obj).__module__.partition(".")[0] == "torch"
        if in_torch or isinstance(obj, torch.nn.Module):
            return Unpicklable, (in_words(obj),)
        return super().reducer_override(obj)


def dumps_result(value: Any) -> bytes:
    """Pickle a rank's result for the kernel; what cannot be pickled travels as its repr."""
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=5).dump(value)
    except Exception:
        return pickle.dumps(Unpicklable(in_words(value)))
    return buffer.getvalue()


class Wakeup:
    """Lets one thread wake another that polls sockets."""

    def __init__(self) -> None:
        self.reader, self.writer = socket.socketpair()
        self.reader.setblocking(False)
        self.writer.setblocking(False)

    def set(self) -> None:
        with suppress(OSError):  # already awake, or closed
            self.writer.send(b"x")

    def clear(self) -> None:
        with suppress(OSError):
            while self.reader.recv(4096):
                pass

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


class Hub:
    """The kernel's end: one thread owns the socket, reads always, and sends what is queued."""

    def __init__(self, on_message: Callable[[bytes, dict], None]) -> None:
        self._on_message = on_message
        self._context = zmq.Context(io_threads=1)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.SNDHWM, 0)
        self._router.setsockopt(zmq.RCVHWM, 0)
        self._outgoing: deque[tuple[bytes, dict]] = deque()
        self._calls: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._wakeup = Wakeup()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="ranks-hub", daemon=True)
        self._thread.start()

    def bind(self, directory: Path) -> str:
        """Listen on a new socket file in a directory of ours; returns its address."""
        address = f"ipc://{directory / 's'}"
        done = threading.Event()
        self._calls.append((lambda: self._router.bind(address) and None, done))
        self._wakeup.set()
        done.wait(5)
        return address

    def unbind(self, address: str) -> None:
        """Listen there no longer; who came in there is disconnected."""
        if self._closing:
            return
        done = threading.Event()
        self._calls.append((lambda: self._router.unbind(address), done))
        self._wakeup.set()
        done.wait(5)

    def send(self, identity: bytes, message: dict) -> None:
        self._outgoing.append((identity, message))
        self._wakeup.set()

    def close(self) -> None:
        self._closing = True
        self._wakeup.set()
        self._thread.join(2)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wakeup.reader, zmq.POLLIN)
        while not self._closing:
            poller.poll()
            self._wakeup.clear()
            while self._calls:
                call, done = self._calls.popleft()
                with suppress(zmq.ZMQError):
                    call()
                done.set()
            while self._outgoing:
                identity, message = self._outgoing.popleft()
                self._router.send_multipart([identity, pickle.dumps(message, protocol=5)])
            while True:
                try:
                    identity, payload = self._router.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._on_message(identity, pickle.loads(payload))
        self._router.close()
        self._context.term()
        self._wakeup.close()


class Link:
    """A rank's or an agent's end: a DEALER socket that connects to the kernel's hub."""

    def __init__(self, address: str, identity: bytes) -> None:
        self.context = zmq.Context(io_threads=1)
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.connect(address)

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(pickle.dumps({"kind": kind, **fields}, protocol=5))

    def receive(self) -> dict | None:
        """The next message, or None when there is none at the moment."""
        try:
            return pickle.loads(self.socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None
