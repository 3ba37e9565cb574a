"""Install the course, at the tested versions, into the environment of the Python that runs this.

`make` calls it with the wanted extras of pyproject.toml: ``python install.py test peers``. It needs
only the standard library. It chooses the build of torch, since pip cannot: what pip finds first on
Linux is the build for NVIDIA's GPUs, ten times as large.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# All that pip downloads for the pinned versions: added up on Linux x86-64, Python 3.11 to 3.13.
CPU_SIZE, CUDA_SIZE = "0.3 GB", "2.8 GB"
CUDA = f"About {CUDA_SIZE}. Ctrl-C and make lab TORCH_INDEX=ADDRESS, if you know one for CPUs."
# A download that breaks off goes on from its last byte, which pip can since 25.1.
PATIENT = ("--retries", "10", "--resume-retries", "20")


def main(extras: list[str]) -> int:
    """Returns pip's exit status."""
    # Stock pips cannot resume. Where the pinned one is here already, nothing is asked.
    done = _pip("install", "--quiet", "-c", str(ROOT / "constraints.txt"), "pip>=25.1")
    index, by_uv, said = choose_torch(os.environ.get("TORCH_INDEX", ""))
    print(said, flush=True)
    if by_uv and not done and _cpu_torch_by_uv():
        print(f"PyTorch's own index is not reached from here, so torch's CUDA build comes. {CUDA}")
    course = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    command = ["install", *PATIENT, *index, "-c", str(ROOT / "constraints.txt"), "-e", course]
    if not sys.stdout.isatty():
        command.append("--quiet")  # on a terminal pip shows how far each download is
    if done or _pip(*command):
        print("Not installed. The same command again goes on with what has come whole.")
        return 1
    return 0


def choose_torch(given: str) -> tuple[list[str], bool, str]:
    """Pip's options for torch's build, whether uv is to bring it, and a sentence about its size.

    ``given``: address of an index by the user's choice, or "".
    """
    again = "less where pip has kept some, or torch is here"
    if given:
        size = CPU_SIZE if given.rstrip("/").endswith("cpu") else f"{CPU_SIZE} to {CUDA_SIZE}"
        return ["--extra-index-url", given], False, f"torch from {given}: about {size} ({again})."
    if platform.system() != "Linux":
        return [], False, f"torch for this system: about {CPU_SIZE} ({again})."
    if has_gpu():
        said = f"An NVIDIA GPU is here: torch with CUDA, about {CUDA_SIZE} ({again})."
        return [], False, f"{said} Smaller: make lab TORCH_INDEX=ADDRESS of an index for CPUs."
    said = f"No NVIDIA GPU is here: torch's CPU build, about {CPU_SIZE} ({again})."
    if offers_cpu_build():
        return [], False, said
    return [], True, said[:-1] + ", from PyTorch's own index."


def has_gpu() -> bool:
    """Whether NVIDIA's driver answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    return subprocess.run([program, "-L"], capture_output=True).returncode == 0


def offers_cpu_build() -> bool:
    """Whether pip would find the CPU build of the pinned torch for this Python; downloads nothing.

    Pip prefers it then: to pip, 2.13.0+cpu is newer than 2.13.0, and the pin allows both.
    """
    command = ["index", "versions", "torch", "--json", "--retries=1", "--timeout=10"]
    found = subprocess.run(
        [sys.executable, "-m", "pip", *command], capture_output=True, text=True, cwd=ROOT
    )
    return (
        found.returncode == 0 and f"{_pinned_torch()}+cpu" in json.loads(found.stdout)["versions"]
    )


def _cpu_torch_by_uv() -> int:
    """Torch alone, from the index of CPU builds that uv knows; what it needs comes by pip."""
    pins = ("-c", str(ROOT / "constraints.txt"))
    if _pip("install", "--quiet", *pins, "uv"):
        return 1
    command = ["uv", "pip", "install", "--quiet", "--no-deps", "--torch-backend=cpu"]
    torch = f"torch=={_pinned_torch()}"
    return subprocess.run(
        [sys.executable, "-m", *command, f"--python={sys.executable}", torch],
        env={"UV_HTTP_RETRIES": "10", **os.environ},
        stderr=subprocess.DEVNULL,
    ).returncode


def _pinned_torch() -> str:
    pinned = re.search(r"(?m)^torch==(\S+)", (ROOT / "constraints.txt").read_text())
    assert pinned, "constraints.txt pins torch"
    return pinned[1]


def _pip(*arguments: str) -> int:
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}  # what build tools tell packages' authors
    return subprocess.run([sys.executable, "-m", "pip", *arguments], env=quiet).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
