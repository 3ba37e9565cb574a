"""Bytes that really crossed the network, from the system's own counters.

`/proc/net/dev` counts what each interface of the machine sent and received. Ranks on one
machine talk over the loopback interface `lo`; ranks on several machines over the others.
The counters belong to the machine (more exactly: to the network namespace), so they include
all ranks on it, TCP headers, and whatever else runs. InfiniBand with RDMA is not in them.
"""

from __future__ import annotations

_COUNTERS = "/proc/net/dev"
# Virtual interfaces forward packets that another interface has counted already.
_VIRTUAL = ("veth", "docker", "br-", "virbr", "cni", "flannel", "tun", "tap", "bond")


def read_wire(path: str = _COUNTERS) -> tuple[int, int] | None:
    """(bytes sent, bytes received) since the machine started; None where there are none."""
    try:
        with open(path) as f:
            lines = f.readlines()[2:]
    except OSError:
        return None
    sent = received = 0
    for line in lines:
        name, _, rest = line.partition(":")
        fields = rest.split()
        if len(fields) >= 9 and not name.strip().startswith(_VIRTUAL):
            received += int(fields[0])
            sent += int(fields[8])
    return sent, received


def wire_since(before: tuple[int, int] | None) -> dict[str, int] | None:
    """{"sent": bytes, "received": bytes} since `before`; None where there are no counters."""
    now = read_wire()
    if before is None or now is None:
        return None
    return {"sent": now[0] - before[0], "received": now[1] - before[1]}
