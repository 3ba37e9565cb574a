"""Messages between the notebook kernel, the agent and the ranks, over ZeroMQ.

The notebook has a `MessageServer`; the agent and each rank have a `MessageClient` that connects to
it. No two of the others talk to each other here: what ranks exchange goes over torch.

Every message is a dictionary with a "kind". On one machine the socket is a file in a directory
that only its owner can enter, so whoever can connect is the owner, and may be unpickled.
"""

from __future__ import annotations

import pickle
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq

AGENT = b"agent"  # its socket identity
STREAMS = ("out", "err")  # of a rank's output, as its pipes and the "output" messages name them


def rank_identity(pool: int, rank: int) -> bytes:
    """The socket identity of a rank."""
    return b"%d:%d" % (pool, rank)


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


class MessageServer:
    """The kernel's end: one thread owns the socket, reads always, and sends what is queued."""

    def __init__(self, on_message: Callable[[bytes, dict[str, Any]], None]) -> None:
        self._on_message = on_message
        self._context = zmq.Context(io_threads=1)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.SNDHWM, 0)
        self._router.setsockopt(zmq.RCVHWM, 0)
        self._outgoing: deque[tuple[bytes, dict[str, Any]]] = deque()
        self._calls: deque[tuple[Callable[[], object], threading.Event]] = deque()
        self._wakeup = Wakeup()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="ranks-messages", daemon=True)
        self._thread.start()

    def bind(self, directory: Path) -> str:
        """Listen on a new socket file in a directory of ours; returns its address."""
        address = f"ipc://{directory / 's'}"
        done = threading.Event()
        self._calls.append((lambda: self._router.bind(address), done))
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

    def send(self, identity: bytes, message: dict[str, Any]) -> None:
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


class MessageClient:
    """A rank's or an agent's end: a DEALER socket that connects to the notebook's server."""

    def __init__(self, address: str, identity: bytes) -> None:
        self.context = zmq.Context(io_threads=1)
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.connect(address)

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(pickle.dumps({"kind": kind, **fields}, protocol=5))

    def receive(self) -> dict[str, Any] | None:
        """The next message, or None when there is none at the moment."""
        try:
            return pickle.loads(self.socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None
