"""Horovod in ranks that are already there: what its own launcher ``horovodrun`` would tell them."""

from __future__ import annotations

import os
import sys
import threading

import torch.distributed as dist


def join() -> None:
    """Call in every rank before ``hvd.init()``: where to meet, and who is which rank.

    Rank 0 serves the meeting point on the loopback interface. Horovod's own class for it would
    listen on every interface of the machine.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    meeting_point = [_serve(size) if rank == 0 else 0]
    dist.broadcast_object_list(meeting_point, src=0)
    os.environ |= {
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(meeting_point[0]),
        "HOROVOD_GLOO_IFACE": "lo0" if sys.platform == "darwin" else "lo",
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_HOSTNAME": "localhost",
        "HOROVOD_RANK": str(rank),
        "HOROVOD_SIZE": str(size),
        "HOROVOD_LOCAL_RANK": str(rank),
        "HOROVOD_LOCAL_SIZE": str(size),
        "HOROVOD_CROSS_RANK": "0",
        "HOROVOD_CROSS_SIZE": "1",
    }


def _serve(size: int) -> int:
    """Start the meeting point in a thread; returns its port."""
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    server = RendezvousHTTPServer(("127.0.0.1", 0), RendezvousHandler, 0)
    server.init(get_host_assignments([HostInfo("localhost", size)], size))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]
