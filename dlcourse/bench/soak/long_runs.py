"""What must not grow, nor be refused, in one long run: pools, strangers, cells of busy cores."""

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


def growth(samples: list[dict[str, Any]], unit: str = "pool") -> dict[str, Any]:
    """From when a fifth of the pools were there to the end: the first ones fill caches."""
    count = f"{unit}s"
    last = samples[-1]
    first = next(s for s in samples if s[count] >= last[count] / 5)
    return {
        f"from_{unit}": first[count],
        f"to_{unit}": last[count],
        "first": {k: v for k, v in first.items() if k != count},
        "last": {k: v for k, v in last.items() if k != count},
    }


MOST_DESCRIPTORS = 50  # more than before, while connections that were shut still close


def frames(trial: Trial) -> Ending:
    """Strangers' noise at the port of a run on several machines: none is heard, nothing grows."""
    started = time.monotonic()
    process = trial.start(cells.command(f"malformed_frames({trial.size}, {trial.number})"))
    trial.until(lambda: process.poll() is not None, 120 + trial.limit * trial.size)
    seconds, told = time.monotonic() - started, cells.heard(trial.said())
    if process.returncode or not told or told[-1].get("heard") != ["hello"]:
        return Ending(UNNAMED, trial.said()[-300:], seconds)
    found = growth([line for line in told if "connections" in line], "connection")
    more = found["last"]["kernel_descriptors"] - found["first"]["kernel_descriptors"]
    if more > MOST_DESCRIPTORS:
        return Ending(UNNAMED, f"{more} more descriptors than before", seconds, found)
    said = f"{trial.size} connections, nothing of them heard"
    return Ending(SUCCESS, said, seconds / trial.size, found)


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
