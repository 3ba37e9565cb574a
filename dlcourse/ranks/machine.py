"""What this machine has for distributed training, found at run time."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

from dlcourse.ranks import limits


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
        "cores": limits.cores(),
        "memory_bytes": limits.memory_bytes(),
        "fitting_ranks": limits.fitting_ranks(),
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
