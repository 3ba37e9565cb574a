"""The second thread of a rank: answers the notebook at any time, whatever the main thread does.

It is what makes hangs explain themselves: Python cannot interrupt a collective that waits in C++,
but another thread can still tell where the main thread stands, which collectives it has started,
and cut the connections so that the wait ends in an error.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from queue import SimpleQueue
from typing import Any

import zmq

from dlcourse.measure.recorder import Recorder
from dlcourse.ranks.messaging import MessageClient, Wakeup
from dlcourse.ranks.worker.connections import Connections
from dlcourse.ranks.worker.interrupt import Interrupt
from dlcourse.ranks.worker.setup import give_memory_back
from dlcourse.ranks.worker.whereabouts import Whereabouts

TRIM_EVERY = 1.0  # seconds of a cell: training leaves holes in the heap, up to 5 MB a step


class Control:
    """Owns the socket to the notebook: answers what can be answered at once, and hands on the rest.

    Attributes:
        inbox: requests for the main thread.
        launcher: the process that must be this one's parent.
    """

    def __init__(
        self,
        address: str,
        identity: bytes,
        launcher: int,
        *,
        interrupt: Interrupt,
        connections: Connections,
        whereabouts: Whereabouts,
        recorder: Recorder,
    ) -> None:
        self.address, self.identity, self.launcher = address, identity, launcher
        self.interrupt, self.connections = interrupt, connections
        self.whereabouts, self.recorder = whereabouts, recorder
        self.inbox: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._outbox: deque[dict[str, Any]] = deque()
        self._wakeup = Wakeup()

    def start(self) -> None:
        """Connect, and answer for as long as the process lives."""
        threading.Thread(target=self._serve, name="control", daemon=True).start()

    def send(self, kind: str, **fields: Any) -> None:
        """Hand a message to the second thread, which owns the socket."""
        self._outbox.append({"kind": kind, **fields})
        self._wakeup.set()

    def _serve(self) -> None:
        client = MessageClient(self.address, self.identity)
        poller = zmq.Poller()
        poller.register(client.socket, zmq.POLLIN)
        poller.register(self._wakeup.reader, zmq.POLLIN)
        trimmed = time.monotonic()
        while True:
            poller.poll(10 if self.interrupt.waits else 1000)
            self.interrupt.again()
            if self.interrupt.running is not None and time.monotonic() - trimmed >= TRIM_EVERY:
                give_memory_back()
                trimmed = time.monotonic()
            if os.getppid() != self.launcher:
                os._exit(1)  # where Linux's death signal does not exist, this ends orphans
            self._wakeup.clear()
            while self._outbox:
                client.send(**self._outbox.popleft())
            while message := client.receive():
                self._take(message, client)

    def _take(self, message: dict[str, Any], client: MessageClient) -> None:
        """Handle a message; a fault in an answer must not end this thread and leave a deaf rank."""
        try:
            self._handle(message, client)
        except Exception:
            traceback.print_exc()

    def _handle(self, message: dict[str, Any], client: MessageClient) -> None:
        kind = message["kind"]
        if kind == "where":
            client.send("where", id=message["id"], where=self.whereabouts.now())
        elif kind == "sample":
            client.send("sample", sample=self.recorder.sample())
        elif kind == "interrupt":
            self.interrupt.request(message["id"])
        elif kind == "cut" and self.interrupt.running == message["id"]:
            self.connections.cut()
        elif kind in ("cell", "call", "value", "join"):
            self.inbox.put(message)
