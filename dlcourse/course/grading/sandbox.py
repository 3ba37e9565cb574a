"""Run a module of ours that runs somebody else's code: shut in, and with limits.

Bubblewrap (https://github.com/containers/bubblewrap) gives it namespaces of its own for files,
processes, network and users. It sees the system, Python and the course, read-only, an empty folder
of its own, and nothing else: no home, no other submission, no network but its own loopback. When it
is ended, all that it started ends with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from dlcourse.course import catalog

LOOK = 0.5  # seconds between two looks at how much memory it has
RESULT = 1 << 20  # bytes that are read of what it says
FILES = 1 << 30  # bytes of its own folder, and of its shared memory
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc")


@dataclass(frozen=True)
class Limits:
    """seconds; bytes of all its processes together; processes and threads that it may have."""

    seconds: float = 900.0
    memory: int = 4 << 30
    processes: int = 1500


@dataclass(frozen=True)
class Ended:
    """said: what the module wrote as its result. limit: "time" or "memory" where it was ended."""

    said: bytes
    limit: str | None
    seconds: float
    status: int
    errors: str


def available() -> bool:
    """Whether submissions can be shut in here."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return False
    tried = subprocess.run(
        [bwrap, *_namespaces(), "--ro-bind", "/", "/", "true"], capture_output=True, check=False
    )
    return tried.returncode == 0


def run(module: str, given: bytes, limits: Limits, *, shut_in: bool) -> Ended:
    """Run `python -m module RESULT_FD PROCESSES`, with `given` as its standard input.

    shut_in: False runs it as a plain process, with the limits of time and memory alone.
    """
    inside = [sys.executable, "-m", module]
    result, write = os.pipe()
    inside += [str(write), str(limits.processes if shut_in else 0)]
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*_bubblewrap(Path(place)), *inside] if shut_in else inside,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(write,),
            cwd=place,
            env=_environment("/tmp" if shut_in else place),
            start_new_session=True,
        )
        os.close(write)
        said = bytearray()
        threads = [
            threading.Thread(target=_give, args=(process, given), daemon=True),
            threading.Thread(target=_read, args=(result, said), daemon=True),
        ]
        for thread in threads:
            thread.start()
        started = time.monotonic()
        try:
            limit = _watch(process, limits, started)
        finally:
            _end(process)
        for thread in threads:
            thread.join(5)
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2000))
        words = errors.read().decode(errors="replace")
    return Ended(bytes(said), limit, time.monotonic() - started, process.returncode, words)


def _watch(process: subprocess.Popen[bytes], limits: Limits, started: float) -> str | None:
    """Wait for its end; the limit that it reached, if it did."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK)
            return None
        if time.monotonic() - started > limits.seconds:
            return "time"
        if sum(map(_memory, _family(process.pid))) > limits.memory:
            return "memory"


def _memory(process: psutil.Process) -> int:
    """Bytes of a process, those that it shares with others divided among them."""
    try:
        return process.memory_full_info().pss
    except (psutil.Error, AttributeError):  # not ours to read, or no Linux
        with contextlib.suppress(psutil.Error):
            return process.memory_info().rss
    return 0


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _end(process: subprocess.Popen[bytes]) -> None:
    """Bubblewrap's first process takes all others with it; without it they are looked for."""
    family = _family(process.pid)
    process.kill() if process.poll() is None else None
    for other in family[1:]:
        with contextlib.suppress(psutil.Error):
            other.kill()
    process.wait()


def _give(process: subprocess.Popen[bytes], given: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin as stdin:
        stdin.write(given)


def _read(result: int, said: bytearray) -> None:
    with open(result, "rb", buffering=0) as file:
        while len(said) < RESULT and (more := file.read(RESULT - len(said))):
            said += more


# ---------------------------------------------------------------------------------- bubblewrap


def _namespaces() -> list[str]:
    own = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--die-with-parent"]
    # root may not be limited in processes: inside, `submission` becomes an ordinary user
    rights = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return own + (rights if os.getuid() == 0 else ["--unshare-user"])


def _bubblewrap(place: Path) -> list[str]:
    """place: an empty folder, for the file that stands where a solution is."""
    command = ["bwrap", *_namespaces(), "--new-session", "--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        command += ["--perms", "1777", "--size", str(FILES), "--tmpfs", folder]
    shown = list(_shown())
    above = {parent for path in shown for parent in Path(path).parents if parent != Path("/")}
    for folder in sorted(map(str, above)):  # bubblewrap's own would be closed to other users
        command += ["--perms", "0755", "--dir", folder]
    for path in shown:
        command += ["--ro-bind-try", path, path]
    empty = place / "empty"
    empty.touch()
    for root in dict.fromkeys((catalog.own_root(), catalog.course_root())):
        for file in sorted((root / "notebooks" / "source").glob("*/exercises/*/solution.py")):
            command += ["--ro-bind", str(empty), str(file)]
    return [*command, "--chdir", "/tmp", "--"]


def _shown() -> Iterator[str]:
    """The system, Python, and of the course what a lesson reads."""
    yield from SYSTEM
    package = Path(__file__).resolve().parents[2]
    paths = sysconfig.get_paths()
    homes = [sys.prefix, sys.base_prefix, *(paths[key] for key in ("stdlib", "purelib", "platlib"))]
    yield from dict.fromkeys([*homes, str(Path(sys.executable).resolve().parents[1])])
    yield str(package)
    for root in dict.fromkeys((catalog.own_root(), catalog.course_root())):
        for part in ("notebooks/source", "data", "pyproject.toml"):
            yield str(root.resolve() / part)


def _environment(home: str) -> dict[str, str]:
    """Nothing of the teacher's but where programs are."""
    kept: Sequence[str] = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "DLCOURSE_ROOT")
    env = {key: os.environ[key] for key in kept if key in os.environ}
    own = {"HOME": home, "TMPDIR": home, "DLCOURSE_PANEL": "off", "DLCOURSE_LEARNER": home}
    return env | own | {"PYTHONDONTWRITEBYTECODE": "1"}
