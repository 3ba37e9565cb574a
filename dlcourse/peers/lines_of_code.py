"""How many lines each saving costs: in the JSON, in code beside it, by hand, and behind that."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from textwrap import dedent
from types import ModuleType
from typing import Any

from dlcourse.peers.deepspeed_job import BLOCKS, wrap_blocks
from dlcourse.training.by_hand import SAVINGS

# What the lines by hand call, in this course; torch's own (checkpoint, AdamW) is not counted
_BEHIND = {
    "accumulate": ["training.accumulation:split"],
    "bf16": ["training.mixed_precision.master_adamw", "training.mixed_precision.support"],
    "checkpoint": ["training.checkpointing.segments"],
    "zero3": [
        *("parallel.zero", "parallel.zero2", "parallel.zero3", "parallel.zero3_state"),
        *("parallel.zero_flat_parameters", "parallel.zero_module", "parallel.zero_owners"),
    ],
    "offload": [],
    "offload_param": ["training.sharding_offload.zero3_offload"],
}
_BATCH = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 16}


def lines_of_savings() -> dict[str, tuple[int, int, int, int]]:
    """Saving -> lines of JSON, of code beside the JSON, of code by hand, of modules behind that.

    Both offloads' JSON is counted without the stage, which ZeRO-3's has already.
    """
    found = {}
    for name, function in SAVINGS.items():
        block: Mapping[str, Any] = _BATCH if name == "accumulate" else BLOCKS[name]
        config = lines_of_json(block)
        if name in ("offload", "offload_param"):
            config -= lines_of_json(BLOCKS["zero3"])
        beside = lines_of_code(wrap_blocks) if name == "checkpoint" else 0
        behind = sum(lines_of_code(_find(reference)) for reference in _BEHIND[name])
        found[name] = (config, beside, lines_of_code(function), behind)
    return found


def lines_of_json(block: Mapping[str, Any]) -> int:
    """Lines that a block takes in a JSON file, without the file's own two braces."""
    return len(json.dumps(block, indent=2).splitlines()) - 2


def lines_of_code(what: Callable | type | ModuleType) -> int:
    """Lines of a function, class or module: no docstring, no comment, no empty line."""
    tree = ast.parse(dedent(inspect.getsource(what)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return sum(1 for line in ast.unparse(tree).splitlines() if line.strip())


def _find(reference: str) -> Any:
    module, _, name = reference.partition(":")
    found = import_module(f"dlcourse.{module}")
    return getattr(found, name) if name else found
