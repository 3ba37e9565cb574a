"""A cell in a rank: the names it finds, and how its source is executed."""

from __future__ import annotations

import builtins
import linecache
import sys
import types
from typing import Any

import torch
import torch.distributed as dist

from dlcourse.ranks.display import describe
from dlcourse.ranks.source import compiled


def new_namespace(rank: int, world_size: int, device: torch.device) -> dict[str, Any]:
    """The names a cell finds; a fresh `__main__`, so that its classes pickle by value."""
    module = types.ModuleType("__main__")
    module.__dict__.update(
        __builtins__=builtins,
        rank=rank,
        world_size=world_size,
        device=device,
        torch=torch,
        dist=dist,
        nn=torch.nn,
        F=torch.nn.functional,
    )
    sys.modules["__main__"] = module
    return module.__dict__


def run_cell(source: str, filename: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """Execute a cell; the value of its last expression is its result, as in a notebook."""
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    statements, last = compiled(source, filename)
    exec(statements, namespace)
    if last is None:
        return {}
    value = eval(last, namespace)
    if value is None or source.rstrip().endswith(";"):
        return {}
    namespace["_"] = value
    return describe(value)
