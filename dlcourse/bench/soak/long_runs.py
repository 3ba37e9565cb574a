"""What must not grow, nor be refused, in one long run: pools of one kernel, cells of busy cores."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from dlcourse.bench.soak import cells
from dlcourse.bench.soak.trial import SUCCESS, UNNAMED, Ending, Trial
from dlcourse.machine import cores

SECONDS_A_POOL, SECONDS_A_CELL = 20.0, 60.0  # at most, on a busy machine


def pools(trial: Trial) -> Ending:
    """So many pools, one after the other, in one kernel; some of them lose a rank."""
    started = time.monotonic()
    process = trial.start(cells.command(f"many_pools({trial.size}, {trial.number})"))
    trial.until(lambda: process.poll() is not None, 120 + SECONDS_A_POOL * trial.size)
    seconds, told = time.monotonic() - started, cells.heard(trial.said())
    samples = [line for line in told if "pools" in line]
    if process.returncode or not told or not told[-1].get("ended"):
        return Ending(UNNAMED, trial.said()[-300:], seconds)
    return Ending(SUCCESS, f"{trial.size} pools", seconds / trial.size, growth(samples))


def growth(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """From when a fifth of the pools were there to the end: the first ones fill caches."""
    last = samples[-1]
    first = next(s for s in samples if s["pools"] >= last["pools"] / 5)
    return {
        "from_pool": first["pools"],
        "to_pool": last["pools"],
        "first": {k: v for k, v in first.items() if k != "pools"},
        "last": {k: v for k, v in last.items() if k != "pools"},
    }


def busy_cores(trial: Trial) -> Ending:
    """Cells whose ranks are only slow, while twice as many programs as cores compute."""
    burn = "while True: pass"
    burners = [trial.start([sys.executable, "-c", burn]) for _ in range(2 * cores())]
    started = time.monotonic()
    try:
        process = trial.start(cells.command(f"slow_cells({trial.size}, {trial.number})"))
        trial.until(lambda: process.poll() is not None, 120 + SECONDS_A_CELL * trial.size)
    finally:
        end(burners)
    seconds, told = time.monotonic() - started, cells.heard(trial.said())
    if process.returncode or not told or not told[-1].get("ended"):
        return Ending(UNNAMED, trial.said()[-300:], seconds)
    last = told[-1]
    if last["refused"]:
        return Ending(UNNAMED, f"{last['refused']} refused: {told[0]}", seconds)
    return Ending(
        SUCCESS, f"{last['cells']} cells", seconds / trial.size, {"load": os.getloadavg()[0]}
    )


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
