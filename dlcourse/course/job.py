"""One run over several machines that are there already: what each of them does.

Every machine starts the same command, `dlcourse job FOLDER -- run 06_zero --ranks 8`, by Slurm's
`srun`, by torchrun, or by hand. The first one runs the lesson; each other one is an agent that
starts ranks for the lesson's kernel, which it finds by a file in a folder that all machines share.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dlcourse.ranks import machines
from dlcourse.ranks.agent import follower

# (number of this machine, number of machines): as srun, torchrun and its own agents tell them.
_TOLD = (("SLURM_PROCID", "SLURM_NTASKS"), ("RANK", "WORLD_SIZE"))


class Job:
    """A machine's part in a run over several.

    Args:
        folder: shared by all machines, used for this run alone.
        command: of `dlcourse`, for the first machine.
        node: number of this machine; by default what srun or torchrun tell.
        nodes: number of machines; by default what srun or torchrun tell.

    Raises:
        ValueError: if nobody tells which machine this is, or the folder has had another run.
    """

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        node: int | None = None,
        nodes: int | None = None,
    ) -> None:
        for number, count in _TOLD:
            if node is None and nodes is None and {number, count} <= os.environ.keys():
                node, nodes = int(os.environ[number]), int(os.environ[count])
        if node is None or nodes is None or not 0 <= node < nodes:
            raise ValueError(
                f"node={node}, nodes={nodes}: start it with srun or torchrun, one task on each "
                "machine, or give both: `--nodes 2 --node 0` here, `--nodes 2 --node 1` there"
            )
        if not command or command[0] != "run":
            raise ValueError(f"command={' '.join(command)!r}: give `run` and its arguments")
        self.folder, self.command, self.node, self.nodes = folder, list(command), node, nodes
        # A job that Slurm starts again has the folder of its first start.
        again = os.environ.get("SLURM_RESTART_COUNT", "0")
        self.ended = folder / f"{follower.ENDED}-{again}"
        if self.ended.exists():
            raise ValueError(f"folder={str(folder)!r}: a run has ended there; give a new one")
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Do this machine's part; returns the exit status of the command."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.node:
            follower.follow(self.folder, self.node, self.ended)
            return 0
        (self.folder / follower.CHANNEL).unlink(missing_ok=True)
        spread = {machines.JOIN: str(self.folder), machines.NODES: str(self.nodes)}
        status = 1
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dlcourse.cli", *self.command], env=os.environ | spread
            )
            status = self.process.wait()
        except KeyboardInterrupt:
            self.interrupt()
            raise
        finally:
            self.ended.write_text(str(status))
            (self.folder / follower.CHANNEL).unlink(missing_ok=True)  # it has keys in it
        return status

    def interrupt(self, seconds: float = 30.0) -> None:
        """End the first machine's command; it keeps what it has got.

        May be called by a signal's handler while `run` waits: Popen's own wait would then wait for
        the one that it interrupts.
        """
        if self.process is None or self.process.returncode is not None:
            return
        limit = time.monotonic() + seconds
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.process.pid, signal.SIGTERM)
            while time.monotonic() < limit:
                if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return
                time.sleep(0.1)
            os.kill(self.process.pid, signal.SIGKILL)
