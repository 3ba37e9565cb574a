"""The machines of a run: this one as a rule, all nodes of a Slurm job, or those where agents wait.

- Inside a Slurm job of several nodes, on one of them: agents are started on the others by `srun`.
- Where DLCOURSE_JOIN names a folder that all machines share and DLCOURSE_NODES their number:
  `dlcourse agent FOLDER --node K` has been started on each other machine, by torchrun or by hand.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

JOIN, NODES, INTERFACE, SHARED = (
    f"DLCOURSE_{name}" for name in ("JOIN", "NODES", "INTERFACE", "SHARED")
)
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Machines:
    """Where a run's ranks are.

    Attributes:
        names: of the machines; the first one is the notebook's.
        address: of this machine, where the others reach it.
        folder: that all machines share; None on a single one.
        by_slurm: whether agents on the other machines are started by `srun`.
    """

    names: tuple[str, ...]
    address: str = LOOPBACK
    folder: Path | None = None
    by_slurm: bool = False

    def used_for(self, size: int) -> int:
        """The number of machines for so many ranks: as many on each, so it divides `size`."""
        return max(n for n in range(1, len(self.names) + 1) if size % n == 0)

    def srun(self) -> list[str]:
        """What is put before the command that is to run once on each other machine."""
        others = len(self.names) - 1
        # From Slurm 22.05 on, srun takes no --cpus-per-task over from the job.
        cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_JOB_CPUS_PER_NODE")
        threads = re.match(r"\d+", cpus or "1")
        return [
            "srun", f"--nodes={others}", f"--ntasks={others}", "--ntasks-per-node=1",
            f"--nodelist={','.join(self.names[1:])}", "--overlap", "--cpu-bind=none",
            f"--cpus-per-task={threads.group() if threads else 1}", "--kill-on-bad-exit=0",
        ]  # fmt: skip


def of_this_run() -> Machines:
    """The machines on which ranks of this process are to run.

    Raises:
        ValueError: for a job that this process is not on a node of, or variables that say nothing.
    """
    if folder := os.environ.get(JOIN):
        return _joined(folder)
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if nodes in ("", "1") or "SLURM_JOB_ID" not in os.environ:
        return Machines((socket.gethostname(),))
    here, listed = os.environ.get("SLURMD_NODENAME", ""), _nodes_of_the_job()
    if here not in listed:
        raise ValueError(
            f"SLURM_JOB_NODELIST={','.join(listed)}: this process is on no node of its job, where "
            "the ranks would be. Start it there: `srun --pty --overlap --nodes=1 --ntasks=1 bash`"
        )
    others = [name for name in listed if name != here]
    shared = Path(os.environ.get(SHARED) or Path.home() / ".dlcourse" / "channels")
    return Machines((here, *others), own_address(_address_of(others[0])), shared, by_slurm=True)


def _joined(folder: str) -> Machines:
    count = os.environ.get(NODES, "")
    if not count.isdigit() or int(count) < 1:
        raise ValueError(f"{NODES}={count!r}: with {JOIN} it must be the number of machines")
    if not Path(folder).is_dir():
        raise ValueError(f"{JOIN}={folder!r}: must be a folder that all machines share")
    here = socket.gethostname()
    if count == "1":
        return Machines((here,))
    other = os.environ.get("MASTER_ADDR")  # of torchrun
    if "SLURM_JOB_NODELIST" in os.environ:
        own = os.environ.get("SLURMD_NODENAME", here)
        other = _address_of(next(name for name in _nodes_of_the_job() if name != own))
    names = (here, *(f"machine {n}" for n in range(1, int(count))))
    return Machines(names, own_address(other), Path(folder))


def _nodes_of_the_job() -> list[str]:
    return _said("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()


def _address_of(node: str) -> str:
    """Where Slurm reaches a node."""
    found = re.search(r"NodeAddr=(\S+)", _said("scontrol", "show", "node", node))
    return found.group(1) if found else node


def own_address(other: str | None = None) -> str:
    """The address of this machine on the interface that DLCOURSE_INTERFACE names, or else on the
    one that leads to another machine.
    """
    if name := os.environ.get(INTERFACE):
        for entry in psutil.net_if_addrs().get(name, ()):
            if entry.family == socket.AF_INET:
                return entry.address
        there = ", ".join(psutil.net_if_addrs())
        raise ValueError(f"{INTERFACE}={name!r}: has no IPv4 address here; there are {there}")
    if other is None:
        raise ValueError(f"{INTERFACE}: name the interface that leads to the other machines")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing
        probe.connect((other, 9))
        return probe.getsockname()[0]


def interface_of(address: str) -> str:
    """The name of the interface that has an address, for Gloo and NCCL."""
    if address == LOOPBACK:
        return "lo0" if sys.platform == "darwin" else "lo"
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return name
    raise ValueError(f"address={address!r}: no interface of {socket.gethostname()} has it")


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"{' '.join(command)}: {error}. Is this a Slurm job?") from None
    return done.stdout
