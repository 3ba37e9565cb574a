"""Fixtures shared by the tests: a small course tree with one demo lesson."""

from __future__ import annotations

import atexit
import gc
import json
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# No test process, nor any kernel that it starts, has a browser to draw widgets for.
os.environ.setdefault("DLCOURSE_PANEL", "off")
# What tests type into predictions stays with them.
os.environ["DLCOURSE_LEARNER"] = tempfile.mkdtemp(prefix="dlcourse-learner")
atexit.register(shutil.rmtree, os.environ["DLCOURSE_LEARNER"], ignore_errors=True)
# Small operations in two threads wait for a busy core at each of them. Ranks have their own number.
os.environ["OMP_NUM_THREADS"] = "1"
# The tests read Korean where they ask for no language, on whatever system they run.
os.environ["LC_ALL"] = "C.UTF-8"
os.environ.pop("DLCOURSE_LANG", None)

# The workers of a parallel test run ignore Ctrl-C, and what they start would too; a kernel and a
# terminal do not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]

# Seconds of each unit in the last run that stored them: `make test ARGS=--store-durations`
DURATIONS = Path(__file__).with_name("durations.json")
UNKNOWN = 10.0  # of a new file

# What a file needs that takes long; a file that is in no list is part of `make quick`.
MARKERS = {
    "notebooks": ("notebooks", "course_run", "wheel", "colab"),
    "browser": ("browser", "explorables", "interfaces"),
    "exercises": ("exercises", "grading", "hub"),
    "engine": (
        *("ranks", "coverage", "mpi", "recorder", "collectives", "one_sided", "kernel"),
        *("course_kernel", "ledger", "failure_words", "imposed_time", "soak"),
    ),
    "parity": (
        *("data_parallel", "tensor_parallel", "context_parallel", "pipeline_parallel"),
        *(
            "zero",
            "zero_checkpoint",
            "zero_steps",
            "goodput_ranks",
            "mesh",
            "expert_parallel",
            "accumulation",
            "mixed_precision",
        ),
        *("checkpointing", "sharding_offload", "memory_anatomy", "verdicts"),
        *("bench_gpu", "scale", "planner_ranks", "architectures", "bakeoff", "explain_ranks"),
        *(
            f"claims_{path.stem[-2:]}"
            for path in Path(__file__).parent.glob("test_claims_[0-9]*.py")
        ),
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark and order the files; the tests of each stay in their order."""
    marker_of = {f"test_{name}": marker for marker, names in MARKERS.items() for name in names}
    for item in items:
        if marker := marker_of.get(item.path.stem):
            item.add_marker(marker)
    # The longest first: a worker that begins one of these last is waited for by all others.
    seconds = json.loads(DURATIONS.read_text())
    items.sort(key=lambda item: -seconds.get(unit(item.nodeid), UNKNOWN))


def unit(nodeid: str) -> str:
    """What one worker runs without a break: a file, whose tests share pools, or a notebook."""
    file, _, test = nodeid.partition("::")
    name = Path(file).stem
    return test if name == "test_notebooks" else name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For ``--dist loadfile``: by `unit`."""
    from xdist.scheduler import LoadFileScheduling

    class ByUnit(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid)

    return ByUnit(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    words = f"write how long each file took into {DURATIONS.name}, by which they are ordered"
    parser.addoption("--store-durations", action="store_true", help=words)


took: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    took[unit(report.nodeid)] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--store-durations") and not hasattr(session.config, "workerinput"):
        seconds = json.loads(DURATIONS.read_text()) | {k: round(s, 1) for k, s in took.items()}
        ordered = dict(sorted(seconds.items(), key=lambda item: -item[1]))
        DURATIONS.write_text(json.dumps(ordered, indent=0) + "\n")


SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGCHLD", "SIGPIPE")
PER_FILE = ("PYTEST_CURRENT_TEST", "DLCOURSE_LANG", "DLCOURSE_WORDS")  # see `own_language`
LIMITS = ("RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_NPROC")


def process_state() -> dict[str, Any]:
    """What one file of tests could leave to the next, which chance puts into the same process."""
    state: dict[str, Any] = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS}
    state |= {name: resource.getrlimit(getattr(resource, name)) for name in LIMITS}
    state |= {"folder": os.getcwd(), "sys.path": list(sys.path)}
    state |= {f"${k}": v for k, v in os.environ.items() if k not in PER_FILE}
    state["seconds of sockets"] = socket.getdefaulttimeout()
    if torch := sys.modules.get("torch"):
        state |= {
            "dtype": torch.get_default_dtype(),
            "threads": torch.get_num_threads(),
            "grad": torch.is_grad_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "modes": torch._C._len_torch_dispatch_stack(),
            "group": torch.distributed.is_initialized(),
        }
    return state


@pytest.fixture(autouse=True)
def the_process_is_left_as_it_was() -> Iterator[None]:
    before = process_state()
    yield
    after = process_state()
    for name in SIGNALS:
        if after[name] is not before[name]:
            signal.signal(getattr(signal, name), before[name])
    # Libraries set variables of theirs when they are imported, and torch may be new.
    names = before.keys() | {name for name in after if name.startswith("$DLCOURSE")}
    changed = {
        name: (before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    }
    assert not changed, "of this process, a test has changed"


@pytest.fixture
def demo_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the demo course, accepted but not built, which the tools take as the course."""
    from dlcourse.course.source import accept_translations

    root = tmp_path / "course"
    shutil.copytree(REPOSITORY / "tests" / "demo", root)
    for file in (REPOSITORY / "notebooks" / "source").glob("*/*.toml"):  # claims, titles
        room = root / "notebooks" / "source" / file.parent.name
        room.mkdir(exist_ok=True)
        shutil.copy(file, room)
    accept_translations(root / "notebooks" / "source" / "97_demo" / "lesson.py")
    monkeypatch.setenv("DLCOURSE_ROOT", str(root))
    return root


@pytest.fixture(scope="module")
def nothing_before() -> Iterator[None]:
    """What earlier files have left alive in this process is not in a new recorder's ledger."""
    gc.collect()
    gc.freeze()  # the ledger looks through the objects that Python's collector knows
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch computes in one thread: small operations in two wait for a busy core at each of them.

    A step of a small model takes ten times as long where other processes use the cores.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Files that read what failed ranks say, in English; test_failure_words.py reads the Korean.
ENGLISH = {
    *("test_bakeoff", "test_collectives", "test_exercises", "test_kernel", "test_kept_ranks"),
    "test_mpi",
    *("test_one_sided", "test_ranks", "test_verdicts"),
}


@pytest.fixture(scope="module", autouse=True)
def own_language(request: pytest.FixtureRequest) -> Iterator[None]:
    """A file of tests that sets the language does not set it for the files after it."""
    from dlcourse.words import strings

    names = ("DLCOURSE_LANG", "DLCOURSE_WORDS")
    chosen, before = strings._chosen, {name: os.environ.get(name) for name in names}
    if request.path.stem in ENGLISH:
        os.environ["DLCOURSE_LANG"] = "en"
    yield
    strings._chosen = chosen
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
