"""What the installed DeepSpeed says of itself and of a configuration, from a process of its own.

Importing DeepSpeed brings torch, some 400 MB and seconds; a notebook's kernel stays small without.
Where this process has imported it already, it is asked here.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

TIMEOUT = 180  # seconds; an import takes five to ten


@dataclass(frozen=True)
class Verdict:
    """What DeepSpeed's own configuration class does with a configuration.

    error:    the type and first lines of what it raises; "" where it takes it.
    warnings: what it logs as warnings or errors.
    """

    error: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Installed:
    """The DeepSpeed of this environment. ``broken``: why it cannot be asked, else ""."""

    version: str = ""
    table: dict[str, Any] = field(default_factory=dict)
    broken: str = ""


def is_installed() -> bool:
    """Whether this environment has DeepSpeed."""
    return find_spec("deepspeed") is not None


_known: list[Installed] = []  # once it is asked
_verdicts: dict[tuple[str, int], Verdict] = {}


def installed() -> Installed | None:
    """Version and table of the DeepSpeed of this environment; None where there is none."""
    return look(None, world_size=1)[0]


def look(
    config: dict[str, Any] | None, *, world_size: int
) -> tuple[Installed | None, Verdict | None]:
    """The installed DeepSpeed, and what it does with ``config``: one new process for both.

    Each is None where there is no DeepSpeed, or where ``config`` is None or cannot be JSON.
    """
    if not is_installed():
        return None, None
    question: dict[str, Any] = {} if _known else {"table": True}
    try:
        text = None if config is None else json.dumps(config)
    except (TypeError, ValueError, RecursionError):
        text = None
    place = (text or "", world_size)
    if text is not None and place not in _verdicts:
        question |= {"config": json.loads(text), "world_size": world_size}
    if question and not (_known and _known[0].broken):
        try:
            said = _ask(question)
        except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[-1]
            _known[:] = _known or [Installed(broken=why)]
            return _known[0], None
        if "table" in said:
            _known[:] = [Installed(said["version"], said["table"])]
        if "error" in said:
            _verdicts[place] = Verdict(said["error"], tuple(said["warnings"]))
    return _known[0], _verdicts.get(place)


def _ask(question: dict[str, Any]) -> dict[str, Any]:
    """The answer of DeepSpeed, from here or from a new process."""
    if "deepspeed" in sys.modules:
        return answer(question)
    root = str(Path(__file__).resolve().parents[2])
    code = (  # as the agent's Python: a json.py of the learner's folder must not be taken
        f"import sys; sys.path.append({root!r}); "
        "from dlcourse.peers import deepspeed_installed as it; it.main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise RuntimeError(done.stderr.strip() or "DeepSpeed said nothing")
    return json.loads(lines[-1])


def main() -> None:
    """The new process: a question on standard input, the answer in the last line of the output."""
    question = json.loads(sys.stdin.read())
    with redirect_stdout(sys.stderr):
        said = answer(question)
    print(json.dumps(said))


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Ask DeepSpeed in this process. ``question`` has "table", "config" and "world_size"."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.utils import logger

    from dlcourse.peers import deepspeed_keys

    heard = _Heard()
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:] = [heard]
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    said: dict[str, Any] = {"version": deepspeed_keys.version()}
    try:
        if question.get("table"):
            said["table"] = deepspeed_keys.table()
        heard.texts.clear()
        if "config" in question:
            said["error"] = ""
            try:
                with ranks(question["world_size"]):
                    DeepSpeedConfig(question["config"])
            except Exception as error:  # whatever it raises is its answer
                text = " ".join(str(error).split())
                said["error"] = f"{type(error).__name__}: {text}"[:600]
            said["warnings"] = [text[:300] for text in dict.fromkeys(heard.texts)]
        return said
    finally:
        logger.handlers[:], logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


@contextmanager
def ranks(number: int) -> Iterator[None]:
    """DeepSpeed's configuration class finds as many ranks, without any process group."""
    from deepspeed.runtime import config

    with (
        patch.object(config.dist, "get_rank", lambda *_, **__: 0),
        patch.object(config.dist, "get_world_size", lambda *_, **__: number),
    ):
        yield


class _Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(" ".join(record.getMessage().split()))
