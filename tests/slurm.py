"""A real Slurm on this machine: two nodes in network namespaces of their own.

Each node has its address, its host name and its loopback, so nothing can reach the other node by
accident; files are shared, as on a cluster. Needs root, Linux, and Debian's slurmctld, slurmd,
slurm-client and munge.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from dlcourse.bench.soak.nodes import NETWORK, OWN, Network

PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "munged", "ip", "unshare")
PORT = 17000 + 2 * OWN


def needed() -> None:
    """Fail in CI where something is missing; skip elsewhere."""
    missing = [p for p in PROGRAMS if not shutil.which(p)]
    problem = f"needs {', '.join(missing)}" if missing else ""
    if not problem and os.geteuid() != 0:
        problem = "needs root, for network namespaces"
    if not problem and subprocess.run(["unshare", "--net", "--uts", "true"]).returncode:
        pytest.skip("this machine gives root no network namespaces (a container without the right)")
    if problem:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem)


CONF = """
ClusterName=dlcourse
SlurmctldHost={host}({network}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
CredType=cred/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
SlurmctldPort={port}
SlurmdPort={other_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,defer_batch=0
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=30
InactiveLimit=0
KillWait=5
JobRequeue=1
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


class Slurm:
    """`with Slurm(place) as slurm: slurm.run("sinfo")`; place: an empty folder."""

    def __init__(self, place: Path, nodes: tuple[str, ...] = ("alpha", "beta")) -> None:
        needed()
        self.place, self.network = place, Network(nodes)
        self.conf = place / "slurm.conf"
        self.env = os.environ | {"SLURM_CONF": str(self.conf)}
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Slurm:
        self.network.__enter__()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        place = self.place
        (place / "state").mkdir()
        key = place / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        lines = "\n".join(
            f"NodeName={node} NodeAddr={address} CPUs=8 RealMemory=1000 State=UNKNOWN"
            for node, address in self.network.addresses.items()
        )
        host = socket.gethostname()
        self.conf.write_text(
            CONF.format(
                host=host,
                network=NETWORK,
                place=place,
                nodes=lines,
                port=PORT,
                other_port=PORT + 1,
            )
        )
        self._spawn(
            "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={place}/munge.socket", f"--pid-file={place}/munged.pid",
            f"--log-file={place}/munged.log", f"--seed-file={place}/munged.seed",
        )  # fmt: skip
        self.until((place / "munge.socket").exists)
        # This machine may have no file system of control groups; nothing here limits anything.
        (place / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self._spawn("slurmctld", "-D", "-c")
        for node in self.network.nodes:
            (place / f"spool-{node}").mkdir()
            self._spawn(*self.network.inside(node), "slurmd", "-D", "-N", node)
        nodes = len(self.network.nodes)
        self.until(lambda: self.run("sinfo", "-h", "-N", "-o", "%T").count("idle") >= nodes)

    def _spawn(self, *command: str) -> None:
        log = (self.place / f"{Path(command[0]).name}.out").open("ab")
        self.processes.append(
            subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)
        )

    def until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Wait for a condition; fails with what Slurm has logged."""
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, self.logs()
            time.sleep(0.1)

    def submit(self, script: str, *options: str, **variables: str) -> tuple[str, Path]:
        """Submit lines of a shell; returns the job's number and the file of what it says."""
        batch = self.place / f"{uuid.uuid4().hex[:8]}.sh"
        exports = "".join(f"export {name}='{value}'\n" for name, value in variables.items())
        batch.write_text(f"#!/bin/bash\n{exports}{script}\n")
        said = self.run("sbatch", "--parsable", f"--output={batch}.out", *options, str(batch))
        return said.strip(), Path(f"{batch}.out")

    def gone(self, job: str) -> bool:
        """Whether the queue knows a job no more."""
        return not self.run("squeue", "-h", "-j", job, "-t", "PD,R,CF,CG,S").startswith(" ")

    def run(self, *command: str, check: bool = False, **more: str) -> str:
        """What a command says that talks to this Slurm, from outside of its nodes."""
        done = subprocess.run(
            command, env=self.env | more, capture_output=True, text=True, timeout=300
        )
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}\n{self.logs()}")
        return done.stdout + done.stderr

    def logs(self) -> str:
        found = [*self.place.glob("*.log"), *self.place.glob("*.out")]
        return "\n".join(f"--- {f.name}\n{f.read_text(errors='replace')[-3000:]}" for f in found)

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--full", "--user=root", "--signal=KILL")
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        self.network.__exit__()
