"""Who takes part, from which library, and how many lines its user writes. Imports no torch."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_HERE = "dlcourse.peers.bakeoff"
_TENSOR, _PIPELINE = "dlcourse.peers.tensor_parallel", "dlcourse.peers.pipeline_parallel"
# torch's pipeline and DeepSpeed's both leave it to the user to cut the model into stages
_STAGES = (
    "dlcourse.parallel.pipeline_stages:split_layers",
    "dlcourse.parallel.pipeline_stages:Stage",
    f"{_PIPELINE}:mean_loss",
)


@dataclass(frozen=True)
class Contestant:
    """One row of the bake-off.

    Attributes:
        name: as the table shows it.
        strategy: "alone", "data", "zero", "tensor" or "pipeline".
        step: makes a training step, ``step(model, job) -> (tokens, targets) -> loss``: a function
            of yours, or "module:function".
        library: its name in ``data/libraries.json``; "" for this course and for none.
        module, package: what must be importable, and the distribution that has it; "" for none.
        also: "module:name" of more code that the user of the library writes.
        stage: of ZeRO.
    """

    name: str
    strategy: str
    step: str | Callable[..., Any]
    library: str = "torch"
    module: str = ""
    package: str = ""
    also: tuple[str, ...] = ()
    stage: int = 0

    @property
    def whole_batch(self) -> bool:
        """Whether each rank takes all sequences of a step, not a part of them."""
        return self.strategy in ("alone", "tensor", "pipeline")

    @property
    def version(self) -> str:
        """Of the library here; "" where there is none, or it is not installed."""
        try:
            return version(self.package or "torch").partition("+")[0] if self.library else ""
        except PackageNotFoundError:
            return ""

    def lines(self) -> int:
        """Lines of code that the user of this library writes for a training step.

        Whole functions with their imports; no blank lines, comments and docstrings.
        """
        return sum(count_lines(place) for place in (self.step, *self.also))


def _deepspeed(stage: int) -> Contestant:
    return Contestant(
        f"DeepSpeed ZeRO-{stage}" if stage else "DeepSpeed 0",
        "zero" if stage else "data",
        f"{_HERE}.sharded:deepspeed_{stage}",
        library="DeepSpeed",
        module="deepspeed",
        package="deepspeed",
        also=(
            f"{_HERE}.sharded:deepspeed_zero",
            "dlcourse.peers.zero:shard_with_deepspeed",
            "dlcourse.peers.deepspeed_engine:engine",
        ),
        stage=stage,
    )


def _ours(name: str, strategy: str, function: str, stage: int = 0) -> Contestant:
    return Contestant(name, strategy, f"{_HERE}.ours:{function}", library="", stage=stage)


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("one process", "alone", f"{_HERE}.data_parallel:one_process", library=""),
        Contestant("DDP", "data", f"{_HERE}.data_parallel:ddp"),
        Contestant(
            "Accelerate",
            "data",
            f"{_HERE}.data_parallel:accelerate",
            library="Accelerate",
            module="accelerate",
            package="accelerate",
        ),
        Contestant(
            "Horovod",
            "data",
            f"{_HERE}.data_parallel:horovod",
            library="Horovod",
            module="horovod",
            package="horovod",
        ),
        _deepspeed(0),
        _ours("ours: data", "data", "data"),
        Contestant("ZeroRedundancyOptimizer", "zero", f"{_HERE}.sharded:torch_zero1", stage=1),
        _deepspeed(1),
        _ours("ours: ZeRO-1", "zero", "zero1", 1),
        _deepspeed(2),
        _ours("ours: ZeRO-2", "zero", "zero2", 2),
        Contestant("FSDP2", "zero", f"{_HERE}.sharded:fsdp2", stage=3),
        _deepspeed(3),
        _ours("ours: ZeRO-3", "zero", "zero3", 3),
        Contestant(
            "DTensor",
            "tensor",
            f"{_HERE}.layers:dtensor",
            also=(f"{_TENSOR}:tensor_parallel", f"{_HERE}.data_parallel:one_process"),
        ),
        Contestant(
            "megatron-core layers",
            "tensor",
            f"{_HERE}.layers:megatron",
            library="Megatron-Core",
            module="megatron",
            package="megatron-core",
            also=(
                f"{_TENSOR}:megatron_parallel",
                f"{_TENSOR}:_OutputOnly",
                f"{_HERE}.data_parallel:one_process",
            ),
        ),
        _ours("ours: tensor", "tensor", "tensor"),
        Contestant(
            "torch pipelining",
            "pipeline",
            f"{_HERE}.layers:torch_pipeline",
            also=(f"{_PIPELINE}:TorchPipeline", *_STAGES),
        ),
        Contestant(
            "DeepSpeed pipeline",
            "pipeline",
            f"{_HERE}.layers:deepspeed_pipeline",
            library="DeepSpeed",
            module="deepspeed",
            package="deepspeed",
            also=(
                f"{_PIPELINE}:DeepSpeedPipeline",
                "dlcourse.peers.deepspeed_engine:engine",
                *_STAGES,
            ),
        ),
        _ours("ours: pipeline", "pipeline", "pipeline"),
    )
}


def missing(contestant: Contestant) -> str:
    """What is not installed here, in words; "" where it can run."""
    if not contestant.module or find_spec(contestant.module) is not None:
        return ""
    return f"{contestant.package} is not installed here"


@lru_cache
def count_lines(code: str | Callable[..., Any]) -> int:
    """Lines of a function or class, without blank lines, comments and docstrings.

    Args:
        code: the function itself, or "module:name", whose file is read and not imported.
    """
    if isinstance(code, str):
        module, _, name = code.partition(":")
        spec = find_spec(module)
        assert spec is not None and spec.origin is not None
        text = Path(spec.origin).read_text(encoding="utf-8")
    else:
        name, text = code.__name__, textwrap.dedent(inspect.getsource(code))
    found = [node for node in ast.parse(text).body if getattr(node, "name", "") == name]
    if not found:  # a `functools.partial` of one that is counted
        return 0
    (node,) = found
    docs = {number for inner in ast.walk(node) for number in _docstring(inner)}
    lines = text.splitlines()
    numbers = range(node.lineno, (node.end_lineno or 0) + 1)
    written = [lines[number - 1].strip() for number in numbers if number not in docs]
    return sum(bool(line) and not line.startswith("#") for line in written)


def _docstring(node: ast.AST) -> Iterable[int]:
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or ast.get_docstring(node) is None:
        return ()
    return range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
