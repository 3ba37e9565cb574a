"""Pack what the learner defined, to send it to fresh ranks.

What cells define travels by value. What comes from a learner's own file travels by its name and is
imported afresh, so the file is judged as it is now, even where the ranks hold an older version.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import linecache
import os
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import cloudpickle

_COURSE = str(Path(__file__).parents[2]) + os.sep
_ROOM = re.compile(r"[/\\]notebooks[/\\]source[/\\]\d\d_\w+[/\\]exercises[/\\]")  # checkers
_INSTALLED = tuple(
    os.path.realpath(path) + os.sep
    for name, path in sysconfig.get_paths().items()
    if name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def pack(names: Sequence[str], namespace: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Pickle the named objects by value, with the source lines that tracebacks will show.

    Returns ``{"payload": bytes, "sources": {file: lines}, "paths": sys.path}``, or
    ``{"problem": key, …}`` where a name is missing, is no function, or refers to something that
    cannot leave its process.
    """
    found = sys.modules["__main__"].__dict__ if namespace is None else namespace
    for name in names:
        if name not in found:
            return {"problem": "no_name", "name": name}
        if not callable(found[name]):
            return {"problem": "not_callable", "name": name, "kind": type(found[name]).__name__}
    try:
        payload = _dumps([found[name] for name in names])
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # pickling runs code of any object that is referred to
        return {"problem": "not_sendable", "name": ", ".join(names), "error": said(error)}
    changed = _forget_compiled(payload)
    files = {function.__code__.co_filename for function in reach([found[name] for name in names])}
    sources = {file: linecache.getlines(file) for file in files if not os.path.exists(file)}
    return {
        "payload": payload,
        "sources": sources,
        "paths": [os.getcwd(), *sys.path],
        "from_ranks": namespace is None,
        "changed": changed,
    }


def _forget_compiled(payload: bytes) -> list[str]:
    """Remove Python's compiled copies of the learner's files.

    Python takes one for good by the second and the size of the source: a file that is changed
    within that second, from `2 * x` to `3 * x`, would be judged as it was.

    Returns the modules that the payload names and whose file has changed since they were imported.
    """
    changed = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name != "__main__" and isinstance(file, str) and file.endswith(".py"):
            if not (os.path.isfile(file) and is_learners(file)):
                continue
            with suppress(OSError):  # there is none, or the folder may only be read
                os.unlink(importlib.util.cache_from_source(file))
            named = bytes([0x8C, len(name.encode())]) + name.encode()  # a string in a pickle
            if named in payload and _is_out_of_date(module, file):
                changed.append(name)
    return changed


def _is_out_of_date(module: types.ModuleType, file: str) -> bool:
    """Whether a function of an imported module reads differently in its file now."""
    try:
        left = [compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)]
    except (OSError, SyntaxError, ValueError):
        return True
    now = set()
    while left:
        code = left.pop()
        now.add(code)
        left += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    own = [value for value in vars(module).values() if hasattr(value, "__qualname__")]
    own = [value for value in own if value.__module__ == module.__name__]
    members = [vars(value).values() for value in own if isinstance(value, type)]
    functions = [f for f in (*own, *(m for of in members for m in of)) if hasattr(f, "__code__")]
    return any(f.__code__ not in now for f in functions if f.__code__.co_filename == file)


def is_learners(file: str) -> bool:
    """Whether a file is neither the course's nor an installed package's, judged by its place."""
    if "site-packages" in file or "dist-packages" in file or _ROOM.search(file):
        return False
    places = _COURSE, *_INSTALLED
    return not file.startswith(places) and not os.path.realpath(file).startswith(places)


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


def said(error: BaseException) -> str:
    """``str(error)``, also where a learner's own exception cannot say it."""
    try:
        return str(error)
    except Exception:
        return f"({type(error).__name__} without words: its __str__ fails)"


def reach(things: Sequence[Any]) -> Iterator[Any]:
    """The Python functions that the learner wrote, from what the check takes on through all that
    it refers to: decorated functions, methods, closures, defaults, and names of its globals."""
    seen: set[int] = set()
    left = list(things)
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, type(sys)):
            continue
        seen.add(id(thing))
        if isinstance(thing, types.FunctionType):
            left += [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
            left += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
            left += [*vars(thing).values()]
            if not _of_a_module(thing):
                yield thing
                named = {*_names(thing.__code__)}
                left += [value for key, value in thing.__globals__.items() if key in named]
        elif isinstance(thing, list | tuple | set | dict):
            elements = thing.values() if isinstance(thing, dict) else thing
            left += islice(elements, 1000)  # of data there may be more than anyone wants to see
        elif isinstance(thing, functools.partial):
            left += [thing.func, thing.args, thing.keywords]
        elif isinstance(thing, types.MethodType):
            left += [thing.__func__, thing.__self__]
        elif isinstance(thing, staticmethod | classmethod):
            left.append(thing.__func__)
        elif isinstance(thing, property):
            left += [thing.fget, thing.fset]
        elif isinstance(thing, type):
            home = sys.modules.get(thing.__module__)
            if thing.__module__ == "__main__" or getattr(home, thing.__name__, None) is not thing:
                left += [*vars(thing).values(), *thing.__bases__]
        else:
            left.append(type(thing))
            with suppress(Exception):  # not by `vars`: a learner's class may answer it in any way
                left.append(object.__getattribute__(thing, "__dict__"))


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # named further down
        return False


def _names(code: types.CodeType) -> Iterator[str]:
    """Global names that a function's code, and functions inside it, may look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _of_a_module(function: types.FunctionType) -> bool:
    """Whether a function's globals are those of a module that was imported."""
    module = sys.modules.get(function.__globals__.get("__name__", ""))
    return module is not sys.modules["__main__"] and vars(module or sys) is function.__globals__
