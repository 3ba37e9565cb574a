"""How the agent's Python is started: its command line and its environment variables."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dlcourse.ranks.machines import LOOPBACK, interface_of

FLIGHT_RECORDER_SIZE = 200  # entries: what each rank has called last
# What another machine has for itself, whatever the notebook has.
OWN = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "CUDA_VISIBLE_DEVICES", "TMPDIR", "HOSTNAME")


def python_without_the_folder(function: str, call: str) -> list[str]:
    """A command that makes a call, whatever lies in the current folder.

    function: "module:name", the function of ours that `call` names.

    A `random.py` or a `torch.py` of the learner must not be taken for the modules of that name;
    `-P` leaves the folder out, and this package is found where it is, installed or not.
    """
    root, (module, _, name) = str(Path(__file__).resolve().parents[2]), function.partition(":")
    code = (
        "import sys, pickle, importlib, typing; "  # before the root, where anything may lie
        f"root = {root!r}; sys.path.insert(0, root); import dlcourse; del sys.path[0]; "
        f"sys.path.append(root); from {module} import {name}; {call}"
    )
    return [sys.executable, "-P", "-c", code]


def environment(address: str = LOOPBACK) -> dict[str, str]:
    """The notebook's variables, and settings that must be there before the agent imports torch.

    address: where ranks of this machine listen: on no other network.
    """
    interface = interface_of(address)
    return {
        **os.environ,
        "TORCH_FR_BUFFER_SIZE": str(FLIGHT_RECORDER_SIZE),
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        "PYTHONUNBUFFERED": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # count GPUs without starting CUDA before a fork
    }


def adopt(variables: dict[str, str], *, elsewhere: bool = False) -> None:
    """Have the variables that the notebook has now; what is started next inherits them.

    elsewhere: this is another machine, which keeps what is its own.
    """
    if elsewhere:
        kept = {n: v for n, v in os.environ.items() if n in OWN or n.startswith("SLURM")}
        variables = {n: v for n, v in variables.items() if n not in OWN} | kept
    for name in set(os.environ) - set(variables):
        del os.environ[name]
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
