"""The agent of another machine: waits for a notebook's channel, serves it until it ends.

`srun` starts one for one notebook. Where a job runs lesson after lesson, each has a notebook of its
own, and `dlcourse agent FOLDER` serves one after the other until the job has ended.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from dlcourse.ranks.agent.agent import PRELOADED, Agent, import_once
from dlcourse.ranks.channel import Channel
from dlcourse.ranks.machines import interface_of, own_address
from dlcourse.ranks.new_process import adopt, environment
from dlcourse.ranks.os_processes import adopt_orphans

CHANNEL, ENDED = "channel.json", "ended"  # files of a folder that all machines share


def main(channel: str) -> None:
    """Serve one notebook, whose channel's file is there already (the task of an `srun`)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ranks are interrupted by request only
    _prepare(Channel.load(Path(channel)))
    _serve(Path(channel), int(os.environ["SLURM_PROCID"]) + 1)


def follow(folder: Path, node: int, ended: Path) -> None:
    """Serve every notebook that opens its channel in a folder, until the job's end is told by a
    file.
    """
    served: Channel | None = None
    while not ended.exists():
        channel = None
        with suppress(FileNotFoundError):
            channel = Channel.load(folder / CHANNEL)
        if channel is None or channel == served:
            time.sleep(0.2)
            continue
        if served is None:
            _prepare(channel)
        served = channel
        _serve(folder / CHANNEL, node)


def _prepare(channel: Channel) -> None:
    """What an agent needs before its first notebook: variables, signals, and torch imported."""
    host = channel.address.removeprefix("tcp://").rpartition(":")[0]
    adopt(environment(own_address(host)), elsewhere=True)
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface_of(
        own_address(host)
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    adopt_orphans()
    import_once(PRELOADED)


def _serve(channel: Path, node: int) -> None:
    agent = Agent(str(channel), None, node)
    try:
        agent.serve()
    finally:
        agent.close()
        agent.client.context.destroy(linger=0)
