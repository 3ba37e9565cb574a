"""Horovod's wheel, built from its last source package against the torch of this Python.

    python -m dlcourse.peers.horovod_wheel OUT              # pip fetches the source package
    python -m dlcourse.peers.horovod_wheel OUT --source horovod-0.28.1.tar.gz

Its last release is older than C++17 in torch's headers, CMake 4 and setuptools 81, so it does not
build as it is. Three things are changed, all of them here: the C++ standard that its CMake files
ask for, the oldest CMake whose rules they follow, and which setuptools runs its ``setup.py``.
Only what the course uses is built: PyTorch over Gloo, without MPI, TensorFlow, MXNet and CUDA.

Needs a C++ compiler, CMake and make. Takes about 7 minutes of one core; the wheel has 18 MB.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

VERSION = "0.28.1"
PROGRAMS = ("c++", "cmake", "make")
BUILD_TOOLS = ("setuptools<81", "wheel")  # setup.py reads pkg_resources, which 81 has no more
# CMake's `set(CMAKE_CXX_STANDARD 14)`: torch's headers are C++17
_OLD_STANDARD = re.compile(r"(set\(CMAKE_CXX_STANDARD) 14\)")
_OPTIONS = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "CMAKE_POLICY_VERSION_MINIMUM": "3.5",  # its libraries ask for rules that CMake 4 has dropped
}


def build(out: Path, *, source: Path | None = None) -> Path:
    """Build the wheel into the folder ``out``; returns its path.

    Args:
        source: ``horovod-0.28.1.tar.gz``; None lets pip fetch it from its index.

    Raises:
        ValueError: no such file, a program that building needs is missing, or a step failed: its
            last lines.
    """
    if source is not None and not source.is_file():
        raise ValueError(f"source={str(source)!r} is no file: give horovod-{VERSION}.tar.gz")
    if lacking := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise ValueError(f"building needs {', '.join(lacking)}: install a C++ compiler and CMake")
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dlcourse-horovod-") as name:
        work = Path(name)
        archive = source or _download(work)
        with tarfile.open(archive) as packed:
            packed.extractall(work, filter="data")
        root = work / f"horovod-{VERSION}"
        raise_cxx_standard(root)
        tools = work / "tools"
        _run([*_pip("install"), "--target", str(tools), *BUILD_TOOLS], work)
        wheels = work / "wheels"
        _run(
            [*_pip("wheel"), "--no-deps", "--no-build-isolation", "-w", str(wheels), "."],
            root,
            {**_OPTIONS, "MAKEFLAGS": f"-j{_jobs()}", "PYTHONPATH": str(tools)},
        )
        (wheel,) = wheels.glob("*.whl")
        return Path(shutil.copy2(wheel, out))


def raise_cxx_standard(root: Path) -> list[Path]:
    """Ask for C++17 where the CMake files under ``root`` ask for C++14; returns those changed.

    Raises:
        ValueError: none does: another version of Horovod than the one this is written for.
    """
    changed = []
    for path in (root / "CMakeLists.txt", *sorted((root / "horovod").rglob("CMakeLists.txt"))):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        new, count = _OLD_STANDARD.subn(r"\1 17)", text)
        if count:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    if not changed:
        raise ValueError(f"{root} asks for C++14 nowhere: give Horovod {VERSION}")
    return changed


def _download(folder: Path) -> Path:
    what = [f"horovod=={VERSION}", "--no-deps", "--no-binary", ":all:"]
    _run([*_pip("download"), *what, "-d", str(folder)], folder)
    return folder / f"horovod-{VERSION}.tar.gz"


def _pip(command: str) -> list[str]:
    return [sys.executable, "-m", "pip", command, "--disable-pip-version-check"]


def _jobs() -> int:
    from dlcourse import machine

    return max(1, machine.cores())


def _run(command: Sequence[str], folder: Path, more: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(more or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise ValueError(f"{' '.join(command[2:4])} failed:\n{last}")


def main(argv: Sequence[str] | None = None) -> int:
    """Build and print where the wheel is; 2 with one sentence where it cannot be built."""
    parser = argparse.ArgumentParser(
        prog="dlcourse.peers.horovod_wheel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder for the wheel")
    parser.add_argument("--source", type=Path, help="the source package, if it is here already")
    args = parser.parse_args(argv)
    try:
        print(build(args.out, source=args.source))
    except ValueError as error:
        print(f"horovod_wheel: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
