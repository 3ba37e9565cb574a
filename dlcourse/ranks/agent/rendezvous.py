"""Where the ranks of a pool meet: one store of torch on the first machine.

On one machine it listens on loopback only, in a job of several on the address by which they reach
each other. Torch elastic's own rendezvous listens on every network of the machine, and whoever
reaches its store may write into it.
"""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.api import rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

BACKEND = "dlcourse"
TIMEOUT = timedelta(seconds=60)


class Meeting(RendezvousHandler):
    """A rendezvous whose machines are known before: nobody joins later.

    endpoint: "address:port" of the store; port 0: this is the first machine, and makes it.
    """

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id, self._nodes = parameters.run_id, parameters.max_nodes
        self._node = int(parameters.config["node"])
        self._address, self._port = parse_rendezvous_endpoint(parameters.endpoint, 0)
        if self._port:
            self._store = TCPStore(self._address, self._port, is_master=False, timeout=TIMEOUT)
            return
        listener = socket.create_server((self._address, 0))
        self._port = listener.getsockname()[1]
        self._store = TCPStore(
            self._address, self._port, is_master=True, master_listen_fd=listener.detach()
        )

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True  # the ranks' MASTER_ADDR and MASTER_PORT are those of this store

    def next_rendezvous(self) -> RendezvousInfo:
        store = PrefixStore("elastic", self._store)
        place = RendezvousStoreInfo(self._address, self._port)
        return RendezvousInfo(store, self._node, self._nodes, place)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


def register() -> str:
    """Make this rendezvous known to torch elastic; returns its name."""
    rendezvous_handler_registry.register(BACKEND, Meeting)
    return BACKEND
