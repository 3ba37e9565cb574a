"""The table of keys of the DeepSpeed that is installed, made by asking DeepSpeed itself.

Two kinds of blocks are in its configuration. Pydantic models list their fields, with type, default
and successor. The rest is read by ``get`` and ``in`` here and there; so its configuration class is
given a dictionary that notes what it is asked for (`Asked`). A key that nobody asks for does
nothing: no typed list of keys is needed, and none can become old.

    python -m dlcourse.peers.deepspeed_keys        # records this version in explain/keys.json

Another version is recorded where its sources come first in PYTHONPATH.
DeepSpeed brings torch with it, so ``deepspeed_installed.py`` calls this in a process of its own.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import textwrap
from collections.abc import Iterator, KeysView
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin
from unittest.mock import patch

MARK = "__asked__"  # a key that only this module knows: it shows which model gets a block
UNKNOWN = "?"  # a default that is in no signature
Table = dict[str, Any]
# What may stand where a block is expected: some are taken for "nothing given"
_NO_BLOCKS: dict[str, Any] = {"null": None, "bool": True, "number": 1, "string": "text", "list": []}
# What may stand as a value that no model checks: DeepSpeed computes with it, or compares it
_VALUES: dict[str, list] = {
    **{kind: [value] for kind, value in _NO_BLOCKS.items()},
    "bool": [True, False],
    "list": [[], [1]],
    "object": [{}, {"name": 1}],
}
# Some blocks are read only where they are switched on, or have a type; one wants numbers first
_SWITCHES: tuple[dict[str, Any], ...] = (
    {},
    {"enabled": True},
    {"type": "Adam"},
    {"enabled": True, "max_train_batch_size": 1, "micro_batch_sizes": [1]},
)


class Asked(dict):
    """A configuration that notes each key it is asked for, with the default of ``get``."""

    def __init__(self, content: dict, notes: dict[str, Any], path: str = "") -> None:
        super().__init__(content)
        self.notes, self.path = notes, path

    def note(self, key: Any, default: Any = UNKNOWN) -> None:
        if isinstance(key, str) and key != MARK:
            path = f"{self.path}.{key}" if self.path else key
            if self.notes.get(path, UNKNOWN) == UNKNOWN:
                self.notes[path] = default

    def get(self, key: Any, default: Any = None) -> Any:
        self.note(key, default)
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        self.note(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.note(key)
        return super().__contains__(key)

    def keys(self) -> Any:
        return AskedKeys(self)

    def items(self) -> Any:  # who takes all there is takes any key
        self.note("*")
        return super().items()

    def __copy__(self) -> Asked:
        if self.path:
            self.note("*")
        return Asked(dict(self), self.notes, self.path)

    def pop(self, key: Any, *default: Any) -> Any:
        self.note(key)
        return super().pop(key, *default)


class AskedKeys(KeysView):
    """``"name" in config.keys()`` asks for a name as well."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self.asked = asked

    def __contains__(self, key: object) -> bool:
        return key in self.asked

    def __iter__(self) -> Iterator:
        return dict.__iter__(self.asked)


def table() -> Table:
    """All keys of the installed DeepSpeed, as ``keys.json`` records them.

    Returns:
        ``keys``: by the block's path, then by name; ``removed``: keys that this version refuses,
        with what it says; ``optimizers`` and ``schedulers``: their parameters.
    """
    import deepspeed
    from deepspeed.runtime import config

    notes, models = _ask(config)
    keys: dict[str, dict[str, Any]] = {}
    blocks = {path.rpartition(".")[0] for path in notes} | set(models)
    for path, default in notes.items():
        if path.endswith("*") or path in models:
            continue
        entry: dict[str, Any] = {"block": "read"} if path in blocks else {}
        if not entry and default != UNKNOWN:
            entry = {"default": _plain(default)}
        keys[path] = entry
    for path in notes:
        if path.endswith(".*"):
            keys.setdefault(path[:-2], {})["block"] = "open"
    for path, model in models.items():
        keys.setdefault(path, {}).update(block="model")
        keys.update(_fields(model, path))
    keys |= _pipeline(config) | _initialize(deepspeed)
    for path in ("optimizer.params", "scheduler.params"):  # go on to a class as they are
        keys[path] = {"block": "open"}
    for path, entry in keys.items():
        if "block" in entry:
            also = [kind for kind, value in _NO_BLOCKS.items() if _takes(config, path, value)]
            entry |= {"also": also} if also else {}
        elif "type" not in entry and "alias" not in entry:
            refused = [
                kind
                for kind, values in _VALUES.items()
                if not any(_takes(config, path, value) for value in values)
            ]
            entry |= {"refuses": refused} if refused else {}
    removed = dict(getattr(config, "_REMOVED_TOP_LEVEL_CONFIG_KEYS", {}))
    zero = getattr(config, "_REMOVED_ZERO_CONFIG_KEYS", {})
    removed |= {f"zero_optimization.{key}": text for key, text in zero.items()}
    blocks_of: dict[str, dict[str, Any]] = {}
    for path, entry in sorted(keys.items()):
        block, _, name = path.rpartition(".")
        if path not in removed:
            blocks_of.setdefault(block, {})[name] = entry
    return {
        "keys": blocks_of,
        "removed": removed,
        "optimizers": _optimizers(config),
        "schedulers": _schedulers(),
        "optimizer_options": {name: None for name in _options()},
    }


def version() -> str:
    """Of the DeepSpeed that is installed."""
    import deepspeed

    return deepspeed.__version__.partition("+")[0]


def _ask(config: Any) -> tuple[dict[str, Any], dict[str, type]]:
    """What is asked for, and the models that blocks are given to."""
    notes: dict[str, Any] = {}
    models: dict[str, type] = {}
    tried: set[str] = set()
    original = config.DeepSpeedConfigModel.__init__

    def init(self: Any, strict: bool = False, **data: Any) -> None:
        if (path := data.pop(MARK, None)) is not None:
            models.setdefault(path, type(self))
        original(self, strict, **data)

    with patch.object(config.DeepSpeedConfigModel, "__init__", init):
        _read(config, notes, "")
        while new := [path for path in notes if path not in tried and not path.endswith("*")]:
            for path in new:
                tried.add(path)
                _read(config, notes, path)
    return notes, models


def _read(config: Any, notes: dict[str, Any], path: str) -> None:
    """Let DeepSpeed read a configuration in which ``path`` is a block that holds nothing."""
    content: Any = {MARK: path} if path else {}
    content = Asked(content, notes, path)
    while path:
        path, _, last = path.rpartition(".")
        content = Asked({last: content}, notes, path)
    for switch in _SWITCHES:
        whole = Asked(content | {"train_batch_size": 1}, notes, "")
        _switch(whole, switch)
        try:
            config.DeepSpeedConfig(whole)
        except Exception:  # a key that is no block: what was asked until then counts
            continue


def _takes(config: Any, path: str, value: Any) -> bool:
    """Whether DeepSpeed reads a configuration that has ``value`` in the place of a block."""
    content = value
    while path:
        path, _, last = path.rpartition(".")
        content = {last: content}
    try:
        sizes = {"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1}
        config.DeepSpeedConfig({**sizes, **content})
    except Exception:  # whatever it raises, it does not take it
        return False
    return True


def _switch(block: dict, switch: dict[str, Any]) -> None:
    for value in list(block.values()):
        if isinstance(value, dict) and value is not None:
            for key, on in switch.items():
                value.setdefault(key, on)
            _switch(value, switch)


def _fields(model: Any, path: str) -> dict[str, dict[str, Any]]:
    """The fields of a pydantic model, and of the models in it."""
    found: dict[str, dict[str, Any]] = {}
    for name, field in _fields_of(model).items():
        key = f"{path}.{field.alias or name}"
        entry: dict[str, Any] = {"type": _type(field.annotation)}
        if field.bounds:
            entry["bounds"] = " and ".join(field.bounds)
        if field.extra.get("deprecated"):
            entry["deprecated"] = field.extra.get("new_param", "")
        parts = (field.annotation, *get_args(field.annotation))
        inner = next((part for part in parts if _is_model(part)), None)
        if inner is not None:
            entry = {"block": "model", **entry}
            entry.pop("type")
            found |= _fields(inner, key)
        else:
            entry["default"] = _plain(field.default)
        found[key] = entry
        if field.alias:
            found[f"{path}.{name}"] = {"alias": field.alias}
    return found


@dataclass
class _Field:
    """What pydantic 1 and 2 both say of a field."""

    annotation: Any
    default: Any
    alias: str | None
    bounds: list[str]
    extra: dict[str, Any]


_SIGNS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def _is_model(part: Any) -> bool:
    return isinstance(part, type) and (hasattr(part, "model_fields") or hasattr(part, "__fields__"))


def _fields_of(model: Any) -> dict[str, _Field]:
    if hasattr(model, "model_fields"):
        return {
            name: _Field(
                field.annotation,
                field.get_default(call_default_factory=True),
                field.alias,
                _bounds(*field.metadata),
                field.json_schema_extra or {},
            )
            for name, field in model.model_fields.items()
        }
    return {  # DeepSpeed up to 0.15 has pydantic 1
        name: _Field(
            model.__annotations__.get(name, field.outer_type_),
            field.get_default(),
            field.alias if field.alias != name else None,
            _bounds(field.field_info),
            field.field_info.extra,
        )
        for name, field in model.__fields__.items()
    }


def _bounds(*places: Any) -> list[str]:
    return [
        f"{sign} {getattr(place, name)}"
        for place in places
        for name, sign in _SIGNS
        if getattr(place, name, None) is not None
    ]


def _type(annotation: Any) -> str:
    """A type as JSON has it: "int", "0|1|2|3", "bool|null"."""
    if get_origin(annotation) in (Union, UnionType):
        return "|".join(dict.fromkeys(_type(a) for a in get_args(annotation)))
    if get_origin(annotation) is Literal:
        return "|".join(str(a) for a in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "|".join(dict.fromkeys(str(m.value) for m in annotation))
    names = {NoneType: "null", str: "string", dict: "object", object: "any"}
    names |= {list: "list", tuple: "list"}
    origin = get_origin(annotation) or annotation
    return names.get(origin) or str(getattr(origin, "__name__", annotation))


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, bool | str | NoneType):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def _pipeline(config: Any) -> dict[str, dict[str, Any]]:
    """Its block takes over any key; those with a default are the ones that have a meaning."""
    given = config.get_pipeline_config({})
    return {f"pipeline.{key}": {"default": _plain(value)} for key, value in given.items()}


def _initialize(deepspeed: Any) -> dict[str, dict[str, Any]]:
    """Keys that ``deepspeed.initialize`` asks for by itself: ``"name" in config``."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(deepspeed.initialize)))
    names = [
        node.left.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Constant)
        and isinstance(node.ops[0], ast.In)
        and [getattr(c, "id", "") for c in node.comparators] == ["config"]
    ]
    return {str(name): {} for name in names}


def _optimizers(config: Any) -> dict[str, dict[str, Any]]:
    """What each ``optimizer.type`` that DeepSpeed knows by itself takes."""
    import torch
    from deepspeed.ops import adagrad, adam, lamb, lion

    made = {
        "adam": getattr(adam, "FusedAdam", None),
        "adamw": getattr(adam, "FusedAdam", None),
        "adagrad": torch.optim.Adagrad,
        "lamb": getattr(lamb, "FusedLamb", None),
        "lion": getattr(lion, "FusedLion", None),
    }
    del adagrad
    names = getattr(config, "DEEPSPEED_OPTIMIZERS", list(made))
    return {name: _parameters(made.get(name)) for name in names}


def _options() -> list[str]:
    """Keys of ``optimizer.params`` that the engine takes out before the optimizer is made."""
    from deepspeed.runtime import engine

    tree = ast.parse(inspect.getsource(engine))
    names = [
        getattr(engine, node.args[0].id, "")
        if isinstance(node.args[0], ast.Name)
        else getattr(node.args[0], "value", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "pop"
        and getattr(node.func.value, "id", "") == "optimizer_parameters"
    ]
    return sorted({name for name in names if isinstance(name, str) and name})


def _schedulers() -> dict[str, dict[str, Any]]:
    from deepspeed.runtime import lr_schedules

    names = lr_schedules.VALID_LR_SCHEDULES
    return {name: _parameters(getattr(lr_schedules, name)) for name in names}


def _parameters(made: Any) -> dict[str, Any]:
    """Names and defaults of what a class is made of; those without a default are needed."""
    if made is None:
        return {}
    given = list(inspect.signature(made).parameters.values())[1:]  # the first is what it works on
    return {
        p.name: None if p.default is p.empty else _plain(p.default)
        for p in given
        if p.kind is not p.VAR_KEYWORD
    }


def record(path: Path) -> str:
    """Write this version's table into ``path``, beside those of other versions. Its version."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"versions": {}}
    content["versions"][version()] = table()
    lines = []
    for name, made in sorted(content["versions"].items()):
        parts = []
        for part, value in made.items():
            rows = [
                f"   {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items()
            ]
            if part == "keys":
                rows = [
                    f"   {json.dumps(block)}: {{\n"
                    + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in keys.items())
                    + "\n   }"
                    for block, keys in value.items()
                ]
            parts.append(f"  {json.dumps(part)}: {{\n" + ",\n".join(rows) + "\n  }")
        lines.append(f" {json.dumps(name)}: {{\n" + ",\n".join(parts) + "\n }")
    path.write_text('{"versions": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
    return version()


if __name__ == "__main__":
    print(f"recorded: {record(Path(__file__).parents[1] / 'explain' / 'keys.json')}")
