"""What this machine, or the container around it, has and lets us use: cores, memory, GPUs."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil

MIB = 1024**2
# Proportional set size of forked ranks, measured on Linux with torch 2.13 (CPU): what all of them
# share (torch's code and data, the agent, the launcher), and what each adds once it has trained a
# small model. Only used to refuse what cannot fit.
SHARED_BYTES = 260 * MIB
RANK_BYTES = 45 * MIB


def _cgroup_value(v2: str, v1: str) -> str | None:
    """One limit of our own control group, version 2 or 1; None where there is none."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    groups = {name: path for _, names, path in (x.split(":", 2) for x in lines)
              for name in names.split(",")}  # fmt: skip
    controller = v1.split("/")[0]
    own = groups.get(controller, "/")
    candidates = [
        Path("/sys/fs/cgroup") / groups.get("", "/").lstrip("/") / v2,
        Path("/sys/fs/cgroup") / v2,
        Path("/sys/fs/cgroup") / controller / own.lstrip("/") / v1.split("/")[1],
        Path("/sys/fs/cgroup") / v1,
    ]
    for file in candidates:
        try:
            return file.read_text().strip()
        except OSError:
            continue
    return None


def cores() -> int:
    """CPU cores we may use: the smallest of affinity and control-group quota, at least 1."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cgroup_value("cpu.max", "cpu/cpu.cfs_quota_us")
    if quota and " " in quota:  # version 2: "quota period"
        limit, period = quota.split()
        if limit != "max":
            available = min(available or 1, math.ceil(int(limit) / int(period)))
    elif quota and quota != "-1" and quota.isdigit():
        period = _cgroup_value("cpu.max", "cpu/cpu.cfs_period_us") or "100000"
        available = min(available or 1, math.ceil(int(quota) / int(period)))
    return max(1, available or 1)


def crowding() -> float:
    """How many threads wanted each core of the machine in the last minute, and at least 1.

    What takes a second on a quiet machine takes so many on this one.
    """
    try:
        return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    except OSError:  # the system does not say
        return 1.0


def memory_bytes() -> int:
    """Memory we may use in bytes: the machine's, or the control group's limit if smaller."""
    total = psutil.virtual_memory().total
    limit = _cgroup_value("memory.max", "memory/memory.limit_in_bytes")
    if limit and limit.isdigit():
        total = min(total, int(limit))
    return total


def available_bytes() -> int:
    """What this process may still take: of the machine, or of the container around it."""
    used = psutil.Process().memory_info().rss
    return min(psutil.virtual_memory().available, max(0, memory_bytes() - used))


def out_of_memory_kills() -> int:
    """How many processes of our control group the kernel has killed for lack of memory."""
    text = _cgroup_value("memory.events", "memory/memory.oom_control") or ""
    for line in text.splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def default_ranks() -> int:
    """Four ranks, or two where there is under 1.5 GB."""
    return 4 if memory_bytes() >= 1.5e9 else 2


def fitting_ranks() -> int:
    """How many ranks fit into this machine's memory, leaving a quarter of it to others."""
    return max(1, int((0.75 * memory_bytes() - SHARED_BYTES) // RANK_BYTES))


def threads_per_rank(n: int) -> int:
    """OpenMP threads for each of n ranks: the cores divided among them, at least 1."""
    return max(1, cores() // n)


def find_machine() -> dict[str, Any]:
    """Cores, memory, GPUs and how ranks talk here. To be run in a rank: it asks torch.

    Returns plain data: ``cores``, ``memory_bytes``, ``fitting_ranks``, ``gpus`` (names),
    ``nvlink`` (bool), ``mps`` (bool), ``device``, ``backend``, ``nccl`` (bool: this torch has it).
    """
    import torch
    import torch.distributed as dist

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    backend = dist.get_backend() if dist.is_initialized() else ""
    return {
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "fitting_ranks": fitting_ranks(),
        "gpus": gpus,
        "nvlink": len(gpus) > 1 and has_nvlink(),
        "mps": torch.backends.mps.is_available(),
        "device": "cuda" if backend == "nccl" else "cpu",
        "backend": backend,
        "nccl": dist.is_nccl_available(),
    }


def has_nvlink() -> bool:
    """Whether two GPUs of this machine are joined by NVLink, as ``nvidia-smi topo -m`` says."""
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        done = subprocess.run(
            ["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return bool(re.search(r"\bNV\d+\b", done.stdout))
