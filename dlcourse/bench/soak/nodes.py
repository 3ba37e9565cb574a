"""Machines that are lost: two network namespaces stand for two machines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from dlcourse.bench.soak import cells
from dlcourse.bench.soak.trial import MARK, NAMED, UNNAMED, Ending, TooLate, Trial, marked, named
from dlcourse.ranks.agent import follower
from dlcourse.ranks.machines import INTERFACE, JOIN, NODES

# Of this process: another one on the same machine has its own.
OWN = os.getpid() % 1000
NETWORK = f"10.{213 + OWN // 250}.{OWN % 250}"
BRIDGE = f"dlcbridge{OWN}"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class Network:
    """Namespaces on one bridge: the first node has the address .2, the next .3, this side .1."""

    def __init__(self, nodes: tuple[str, ...]) -> None:
        self.nodes = nodes
        self.addresses = {node: f"{NETWORK}.{i}" for i, node in enumerate(nodes, start=2)}

    def __enter__(self) -> Network:
        self._remove()
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def _make(self) -> None:
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        for node, address in self.addresses.items():
            space, here, there = self.namespace(node), f"dlc{OWN}{node}", f"d{OWN}{node}"
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", here, "type", "veth", "peer", "name", there)
            _run("ip", "link", "set", here, "master", BRIDGE, "up")
            _run("ip", "link", "set", there, "netns", space)
            within = ("ip", "netns", "exec", space, "ip")
            _run(*within, "link", "set", "lo", "up")
            _run(*within, "link", "set", there, "name", "fabric0")
            _run(*within, "address", "add", f"{address}/24", "dev", "fabric0")
            _run(*within, "link", "set", "fabric0", "up")

    def namespace(self, node: str) -> str:
        return f"dlc{OWN}-{node}"

    def inside(self, node: str) -> list[str]:
        """What is put in front of a command to run it on a node, under the node's name."""
        shell, space = f'hostname {node} && exec "$@"', self.namespace(node)
        return [
            "ip", "netns", "exec", space, "unshare", "--uts", "sh", "-c", shell, "sh",
        ]  # fmt: skip

    def unplug(self, node: str) -> None:
        """The node's cable is pulled: no message arrives, no connection is closed."""
        _run("ip", "link", "set", f"dlc{OWN}{node}", "down")

    def plug(self, node: str) -> None:
        _run("ip", "link", "set", f"dlc{OWN}{node}", "up")

    def _remove(self) -> None:
        for node in self.nodes:
            subprocess.run(["ip", "netns", "delete", self.namespace(node)], capture_output=True)
            subprocess.run(["ip", "link", "delete", f"dlc{OWN}{node}"], capture_output=True)
        subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True)

    def __exit__(self, *_: object) -> None:
        self._remove()


def needs() -> str:
    missing = [name for name in ("ip", "unshare") if not shutil.which(name)]
    if missing:
        return f"needs {', '.join(missing)}"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True).returncode:
        return "needs the right to make network namespaces"
    return ""


def lose_a_node(trial: Trial) -> Ending:
    """The cable of the second machine is pulled, or all that it runs is killed, amid a cell."""
    pulled = trial.chance.random() < 0.5
    folder = trial.place / "channel"
    folder.mkdir(mode=0o700)
    second = f"{trial.mark}.second"
    with Network(("gamma", "delta")) as network:
        script = cells.command(f"over_two_machines({str(trial.place)!r}, {trial.number})")
        more = {JOIN: str(folder), NODES: "2", INTERFACE: "fabric0"}
        first = trial.start([*network.inside("gamma"), *script], more=more)
        job = ["job", str(folder), "--nodes", "2", "--node", "1", "--", "run", "00"]
        # Each machine has its disk; nobody clears up that of one whose programs were all killed.
        disk = trial.place / ("tmp" if pulled else "lost")
        disk.mkdir(exist_ok=True)
        agent = trial.start(
            [*network.inside("delta"), sys.executable, "-m", "dlcourse.cli", *job],
            more={INTERFACE: "fabric0", MARK: second, "TMPDIR": str(disk)},
        )
        try:
            trial.until(lambda: first.poll() is not None or (trial.place / "up").exists(), 180)
            if first.poll() is not None:
                return Ending(UNNAMED, f"ended before: {trial.said()[-300:]}")
            time.sleep(trial.chance.uniform(0, 5))
            lost = time.monotonic()
            if pulled:
                network.unplug("delta")
            else:
                for process in marked(second):
                    process.kill()
            trial.until(lambda: cells.heard(trial.said()), trial.limit)
            seconds = time.monotonic() - lost
            trial.until(lambda: first.poll() is not None, trial.limit)
            # As `dlcourse job` does on the first machine; what the second one runs ends by it,
            # cable or no cable.
            (folder / f"{follower.ENDED}-0").write_text("1")
            try:
                trial.until(lambda: agent.poll() is not None, trial.limit)
                trial.until(lambda: not marked(second), trial.limit)
            except TooLate:
                left = [p.name() for p in marked(second)]
                return Ending(UNNAMED, f"the second machine still runs {left}", seconds)
        finally:
            for process in marked(second):
                process.kill()
            agent.wait()
    told = cells.heard(trial.said())
    error, said = told[0]["error"], told[0]["said"]
    words = f"{'cable pulled' if pulled else 'killed'}: {error}: {said.partition(chr(10))[0]}"
    good = named(error, said) and "delta" in said and "gives no sign" in told[-1].get("next", "")
    if not good:
        words += f"; next: {told[-1].get('next')}"
    return Ending(NAMED if good else UNNAMED, words, seconds)
