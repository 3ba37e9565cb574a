"""Messages between the notebook kernel, the agent and the ranks, over ZeroMQ.

The notebook has a `MessageServer`; the agent and each rank have a `MessageClient` that connects to
it. No two of the others talk to each other here: what ranks exchange goes over torch.

Every message is a dictionary with a "kind". On one machine the socket is a file in a directory
that only its owner can enter, so whoever can connect is the owner, and may be unpickled. Over
machines it listens on one address, and encrypts: who connects must have the keys (`Channel`).
"""

from __future__ import annotations

import hmac
import pickle
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import parse_monitor_message

from dlcourse.ranks.channel import Channel

SIGN_EVERY, SIGN_LIMIT = 1000, 6000  # ms: a machine that gives no sign for so long is lost
STREAMS = ("out", "err")  # of a rank's output, as its pipes and the "output" messages name them


def agent_identity(node: int) -> bytes:
    """The socket identity of a machine's agent; the notebook's own machine is number 0."""
    return b"agent:%d" % node


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


class _OneKey:
    """Lets in who has proved to have one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        return hmac.compare_digest(key, self._key)


class MessageServer:
    """The kernel's end: one thread owns the socket, reads always, and sends what is queued.

    on_lost: called with the identity of an agent on another machine whose connection has ended.
    """

    def __init__(
        self,
        on_message: Callable[[bytes, dict[str, Any]], None],
        on_lost: Callable[[bytes], None] = lambda identity: None,
    ) -> None:
        self._on_message, self._on_lost = on_message, on_lost
        self._monitor: zmq.Socket[bytes] | None = None
        self._guard: ThreadAuthenticator | None = None
        self._agents: dict[int, bytes] = {}  # descriptor of its connection -> identity
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

    def bind_network(self, host: str) -> Channel:
        """Listen on an address of this machine; only who has the returned keys gets in."""
        public, secret = zmq.curve_keypair()
        client, client_secret = zmq.curve_keypair()
        self._guard = ThreadAuthenticator(self._context)
        self._guard.start()
        self._guard.configure_curve_callback("*", _OneKey(client))
        found: list[str] = []

        def listen() -> None:
            self._router.setsockopt(zmq.CURVE_SERVER, 1)
            self._router.setsockopt(zmq.CURVE_SECRETKEY, secret)
            self._router.setsockopt(zmq.HEARTBEAT_IVL, SIGN_EVERY)
            self._router.setsockopt(zmq.HEARTBEAT_TIMEOUT, SIGN_LIMIT)
            self._monitor = self._router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            self._router.bind(f"tcp://{host}:*")
            found.append(self._router.getsockopt_string(zmq.LAST_ENDPOINT))

        done = threading.Event()
        self._calls.append((listen, done))
        self._wakeup.set()
        if not done.wait(5) or not found:
            raise OSError(f"cannot listen on {host}")
        return Channel(found[0], *(key.decode() for key in (public, client, client_secret)))

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
            if self._monitor is not None:
                # Read from the first moment on: where 2,000 of its events are unread, libzmq waits,
                # and lets nobody in any more.
                if self._monitor not in poller:
                    poller.register(self._monitor, zmq.POLLIN)
                while self._monitor.poll(0):
                    ended = parse_monitor_message(self._monitor.recv_multipart())["value"]
                    if (agent := self._agents.pop(ended, None)) is not None:
                        self._on_lost(agent)
            while self._outgoing:
                identity, message = self._outgoing.popleft()
                self._router.send_multipart([identity, pickle.dumps(message, protocol=5)])
            while True:
                try:
                    frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                identity, payload = frames[0].bytes, frames[1].buffer
                if self._monitor is not None and identity.startswith(b"agent:"):
                    self._agents[frames[1].get(zmq.SRCFD)] = identity
                self._on_message(identity, pickle.loads(payload))
        if self._monitor is not None:
            self._router.disable_monitor()
            self._monitor.close()  # or the context waits for it
        if self._guard is not None:
            self._guard.stop()
        self._router.close()
        self._context.term()
        self._wakeup.close()


class MessageClient:
    """A rank's or an agent's end: a DEALER socket that connects to the notebook's server.

    address: of a socket's file, or the path of a channel's file, which has the keys.
    """

    def __init__(self, address: str, identity: bytes) -> None:
        self.context = zmq.Context(io_threads=1)
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        if not address.startswith("ipc:"):
            channel = Channel.load(Path(address))
            self.socket.setsockopt(zmq.HEARTBEAT_IVL, SIGN_EVERY)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SIGN_LIMIT)
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, channel.server.encode())
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, channel.client.encode())
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, channel.secret.encode())
            address = channel.address
        self.socket.connect(address)

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(pickle.dumps({"kind": kind, **fields}, protocol=5))

    def receive(self) -> dict[str, Any] | None:
        """The next message, or None when there is none at the moment."""
        try:
            return pickle.loads(self.socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None
