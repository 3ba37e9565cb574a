"""Where the ranks of one machine meet: one store of torch that listens on loopback only.

Torch elastic's own rendezvous listens on every network of the machine, and whoever reaches its
store may write into it.
"""

from __future__ import annotations

import socket

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.api import rendezvous_handler_registry

BACKEND = "dlcourse"
LOOPBACK = "127.0.0.1"


class OneMachine(RendezvousHandler):
    """A rendezvous of one launcher: nobody else is waited for, and nobody joins later."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        listener = socket.create_server((LOOPBACK, 0))
        self._port = listener.getsockname()[1]
        self._store = TCPStore(
            LOOPBACK, self._port, is_master=True, master_listen_fd=listener.detach()
        )

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True  # the ranks' MASTER_ADDR and MASTER_PORT are those of this store

    def next_rendezvous(self) -> RendezvousInfo:
        store = PrefixStore("elastic", self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(LOOPBACK, self._port))

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
    rendezvous_handler_registry.register(BACKEND, OneMachine)
    return BACKEND
