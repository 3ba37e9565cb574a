"""Runs in ranks: pack what the learner defined, and judge it in a fresh pool."""

from __future__ import annotations

import io
import linecache
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle


def pack(names: Sequence[str], namespace: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Pickle the named objects by value, with the source lines that tracebacks will show.

    Returns ``{"payload": bytes, "sources": {file: lines}}``, or ``{"problem": key, …}`` where a
    name is missing, is no function, or refers to something that cannot leave its process.
    """
    found = sys.modules["__main__"].__dict__ if namespace is None else namespace
    for name in names:
        if name not in found:
            return {"problem": "no_name", "name": name}
        if not callable(found[name]):
            return {"problem": "not_callable", "name": name, "kind": type(found[name]).__name__}
    try:
        payload = _dumps([found[name] for name in names])
    except Exception as error:  # pickling runs code of any object that is referred to
        return {"problem": "not_sendable", "name": ", ".join(names), "error": str(error)}
    sources = {
        code.co_filename: linecache.getlines(code.co_filename)
        for name in names
        for code in _codes(found[name])
    }
    return {"payload": payload, "sources": sources}


class _Pickler(cloudpickle.Pickler):
    """Sends torch's operators as well, such as ``torch.ops.aten.mm.default``: by their names."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj).__module__ == "torch._ops":
            # "torch.ops" and "torch.ops.aten" are modules, "aten.mm.default" is an operator
            name = obj.__name__ if isinstance(obj, type(sys)) else f"torch.ops.{obj}"
            return _operator, (name,)
        return super().reducer_override(obj)


def _operator(name: str) -> Any:
    import torch

    found: Any = torch
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def _dumps(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def judge(
    payload: bytes, sources: Mapping[str, list[str]], checker: Callable[..., Sequence[Any]]
) -> list[dict[str, Any]]:
    """Run a checker on what was packed; returns its findings, one list from each rank."""
    import torch
    import torch.distributed as dist

    for name, lines in sources.items():
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
    objects = cloudpickle.loads(payload)
    # The functions bring rank 0's globals with them; here they must see this rank's.
    own = {k: v for k, v in sys.modules["__main__"].__dict__.items() if not k.startswith("__")}
    for thing in objects:
        for scope in _globals(thing):
            scope.update(own)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # little to compute; two threads wait for each other on a busy machine
    return list(checker(*objects, dist.get_rank(), dist.get_world_size()))


def _functions(thing: Any) -> list[Any]:
    """The Python functions of a function, a class or an instance."""
    if hasattr(thing, "__code__"):
        return [thing]
    owner = thing if isinstance(thing, type) else type(thing)
    members = [vars(base) for base in owner.__mro__ if base is not object]
    found = []
    for member in (value for scope in members for value in scope.values()):
        for candidate in (member, getattr(member, "__func__", None), getattr(member, "fget", None)):
            if hasattr(candidate, "__code__"):
                found.append(candidate)
    return found


def _codes(thing: Any) -> list[Any]:
    return [f.__code__ for f in _functions(thing) if f.__code__.co_filename.startswith("<")]


def _globals(thing: Any) -> list[dict[str, Any]]:
    """Global scopes that came with the learner's code; never those of a real module."""
    real = {
        id(vars(module)) for module in list(sys.modules.values()) if hasattr(module, "__dict__")
    }
    scopes = {id(f.__globals__): f.__globals__ for f in _functions(thing)}
    return [scope for key, scope in scopes.items() if key not in real]
