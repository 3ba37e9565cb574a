"""Bytes that really crossed the network, from the system's own counters.

The system counts what each interface of the machine sent and received. Ranks on one machine talk
over the loopback interface; ranks on several machines over the others. The counters belong to
the machine (more exactly: to the network namespace), so they include all ranks on it, TCP
headers, and whatever else runs. InfiniBand with RDMA is not in them.
"""

from __future__ import annotations

import psutil

# Virtual interfaces forward packets that another interface has counted already.
_VIRTUAL = ("veth", "docker", "br-", "virbr", "cni", "flannel", "tun", "tap", "bond")


def network_bytes() -> tuple[int, int] | None:
    """(bytes sent, bytes received) since the machine started; None where there are none."""
    try:
        # nowrap would add up what counters lost when they wrapped, in a state of this process
        interfaces = psutil.net_io_counters(pernic=True, nowrap=False)
    except OSError:
        return None
    real = [count for name, count in interfaces.items() if not name.startswith(_VIRTUAL)]
    return sum(c.bytes_sent for c in real), sum(c.bytes_recv for c in real)


def network_bytes_since(before: tuple[int, int] | None) -> dict[str, int] | None:
    """{"sent": bytes, "received": bytes} since `before`; None where there are no counters."""
    now = network_bytes()
    if before is None or now is None:
        return None
    return {"sent": now[0] - before[0], "received": now[1] - before[1]}
