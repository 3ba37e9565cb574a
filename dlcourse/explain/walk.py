"""Goes through every key of a configuration, nested ones too, and says what it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlcourse.explain.finding import Finding
from dlcourse.explain.keys import Key, Keys, versions_with
from dlcourse.explain.types import fits, kind_of
from dlcourse.words import strings
from dlcourse.words.strings import t

_WORDS = Path(strings.__file__).parent / "explain.toml"
TOP = "top"  # what words call the block of all keys that are in no block
# Keys that no version ever had and that people write all the same
NEVER = ("gradient_checkpointing", "mixed_precision", "learning_rate", "batch_size", "num_gpus")
# What took the place of these is said, where a version refuses them by name
GONE = (
    *("amp", "compression_training", "curriculum_learning", "eigenvalue", "elasticity"),
    *("graph_harvesting", "mics_hierarchical_params_gather", "mics_shard_size", "nebula"),
    *("progressive_layer_drop", "quantize_training", "sparse_attention", "sparse_gradients"),
    "zeropp_loco_param",
)
_CLASSES = {"optimizer.params": "optimizers", "scheduler.params": "schedulers"}


def walk(config: dict[str, Any], keys: Keys) -> Iterator[Finding]:
    """A finding for each key."""
    yield from _block(config, "", keys, config)


def _block(
    block: dict[str, Any], path: str, keys: Keys, config: dict[str, Any]
) -> Iterator[Finding]:
    for name, value in block.items():
        here = f"{path}.{name}" if path else name
        if here in keys.removed:
            yield _removed(here, value, keys)
            continue
        key = keys.get(here)
        if key is None:
            yield from _unknown(here, value, keys, config)
            continue
        yield from _known(here, value, key, keys)
        if isinstance(value, dict):
            inside = _block(value, here, keys, config) if key.block else _kept(value, here)
            yield from inside


def _kept(block: dict[str, Any], path: str) -> Iterator[Finding]:
    """What stands in a value that is an object: DeepSpeed reads it where it uses it."""
    for name, value in block.items():
        here = f"{path}.{name}"
        yield Finding("does", here, _shown(value), None, t("explain.kept"))
        if isinstance(value, dict):
            yield from _kept(value, here)


def _known(here: str, value: Any, key: Key, keys: Keys) -> Iterator[Finding]:
    parent = keys.get(here.rpartition(".")[0])
    in_model = parent is not None and parent.block == "model"  # which drops what is "auto"
    old_form = here == "zero_optimization" and isinstance(value, bool)
    if key.deprecated is not None or old_form:
        instead = key.deprecated or "zero_optimization.stage"
        text = t("explain.deprecated.instead", instead=_sibling(here, instead, keys))
        said = _does(key)
        yield Finding("deprecated", here, value, key.default, f"{text} {said}".strip())
        return
    if key.block and not isinstance(value, dict):
        if kind_of(value) in key.also:
            yield Finding("ignored", here, value, None, t("explain.ignored.no_block"))
        elif not (value == "auto" and in_model):
            text = t("explain.not_block")
            yield Finding("contradictory", here, value, None, text, refused=True)
        return
    if key.type and value != "auto" and not fits(value, key.type, key.bounds):
        text = t("explain.wrong", type=key.type)
        if key.bounds:
            text += " " + t("explain.bounds", bounds=key.bounds)
        yield Finding("contradictory", here, _shown(value), key.default, text, refused=True)
        return
    kind = kind_of(value)
    if kind in key.refuses and kind != "string":
        text = t("explain.fails", kind=t(f"explain.json.{kind}"))
        yield Finding("contradictory", here, _shown(value), key.default, text, refused=True)
        return
    text = _does(key)
    if not text:
        text = t("explain.no_text")
        if key.type:
            text += " " + t("explain.type", type=key.type)
        if key.bounds:
            text += " " + t("explain.bounds", bounds=key.bounds)
    yield Finding("does", here, _shown(value), key.default, text)


def _sibling(here: str, instead: str, keys: Keys) -> str:
    """The successor's whole path, where it is a key of the same block."""
    block = here.rpartition(".")[0]
    path = f"{block}.{instead}".lstrip(".")
    found = keys.get(path)
    return found.path if found else instead


def _removed(here: str, value: Any, keys: Keys) -> Finding:
    """This version refuses it by name; ours say what took its place."""
    text = t("explain.removed", version=keys.version)
    name = here.rpartition(".")[2]
    own = t(f"explain.gone.{name}") if name in GONE else ""
    return Finding("deprecated", here, _shown(value), None, f"{text} {own}".strip(), refused=True)


def _unknown(here: str, value: Any, keys: Keys, config: dict[str, Any]) -> Iterator[Finding]:
    block, _, name = here.rpartition(".")
    parent = keys.get(block)
    kind = parent.block if parent else "read"
    if kind == "open":
        yield from _handed_on(here, value, keys, config)
        return
    refused = kind == "model" and value != "auto"  # a model drops whatever is "auto"
    fate = t("explain.fate.refused" if refused else "explain.fate.ignored", version=keys.version)
    others = [v for v in versions_with(here) if v != keys.version]
    if others:
        text = t("explain.elsewhere", first=others[0], last=others[-1], version=keys.version)
        yield Finding("ignored", here, _shown(value), None, f"{text} {fate}", refused=refused)
        return
    text = t("explain.never", name=name)
    if (near := keys.nearest(here)) is not None:
        text += " " + t("explain.near", near=near)
    own = t(f"explain.instead.{name}") if name in NEVER else ""
    yield Finding(
        "unknown", here, _shown(value), None, f"{text} {fate} {own}".strip(), refused=refused
    )


def _handed_on(here: str, value: Any, keys: Keys, config: dict[str, Any]) -> Iterator[Finding]:
    """A key that DeepSpeed hands to a class, such as an optimizer, or keeps as it is."""
    block, _, name = here.rpartition(".")
    if block in _CLASSES:
        owner = block.partition(".")[0]
        kind = config.get(owner, {}).get("type")
        classes = getattr(keys, _CLASSES[block])
        takes = classes.get(kind, classes.get(kind.lower())) if isinstance(kind, str) else None
        if takes and owner == "optimizer":
            takes = {**takes, **keys.optimizer_options}
        own = t(f"explain.params.{name}") if has_words(f"params.{name}") else ""
        if own or (takes and name in takes):
            default = (takes or {}).get(name)
            yield Finding("does", here, _shown(value), default, own or t("explain.no_text"))
            return
        if takes:
            text = t("explain.params.unknown", kind=kind, known=", ".join(takes))
            yield Finding("unknown", here, _shown(value), None, text, refused=True)
            return
        yield Finding("does", here, _shown(value), None, t("explain.handed_on", kind=str(kind)))
        return
    own = _does_words(block.rpartition(".")[2], name)
    if not own and block == "pipeline":
        text = t("explain.never", name=name)
        if (near := keys.nearest(here)) is not None:
            text += " " + t("explain.near", near=near)
        fate = t("explain.fate.ignored", version=keys.version)
        yield Finding("unknown", here, _shown(value), None, f"{text} {fate}")
        return
    yield Finding("does", here, _shown(value), None, own or t("explain.kept"))


def _does(key: Key) -> str:
    """What a key does, in our words; "" where the course has none."""
    block, _, name = key.path.rpartition(".")
    block = block.rpartition(".")[2] or TOP
    return _does_words(*(part.replace("bfloat16", "bf16") for part in (block, name)))


def _does_words(block: str, name: str) -> str:
    return t(f"explain.does.{block}.{name}") if has_words(f"does.{block}.{name}") else ""


def has_words(name: str) -> bool:
    """Whether the course has a text of this name."""
    return name in strings.read_words(_WORDS)


def _shown(value: Any) -> Any:
    """A block is shown by its keys, not as a whole."""
    return {} if isinstance(value, dict) else value


def value_text(value: Any) -> str:
    """A value as JSON has it; one that is longer than a line, cut."""
    if value == {}:
        return "{…}"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
