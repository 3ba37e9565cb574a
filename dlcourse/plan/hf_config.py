"""Reads a model's sizes from a Hugging Face ``config.json``.

    read_config("config.json")          # a file
    published_model("llama-3-8b")       # one of models.json of this folder

Keys are those of the ``transformers`` library's configuration classes, by ``model_type``. One that
is not known is refused: a BERT has Llama's keys, and other layers. Without any it is read as a
Llama's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dlcourse.formulas.sizes import MODELS
from dlcourse.plan.model_shape import ModelShape, gpt_shape
from dlcourse.words.refusal import Refusal

_FILE = Path(__file__).with_name("models.json")
_MOST_TEXT = 10_000_000  # characters; the longest published config has some thousands
# What each family calls its sizes; of several names the first that is there
_LLAMA = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "ffn": ("intermediate_size",),
    "vocab": ("vocab_size",),
}
_GPT2 = {
    "layers": ("n_layer",),
    "hidden": ("n_embd",),
    "heads": ("n_head",),
    "vocab": ("vocab_size",),
}
_LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "olmo", "olmo2", "smollm3")
_MOE = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek")
_DEEPSEEK = ("deepseek_v2", "deepseek_v3", "kimi_k2")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
# Keys that hold a whole number where they are there; null is as if they were not
_WHOLE = (
    *("head_dim", "num_key_value_heads", "n_inner", "n_positions", "kv_lora_rank", "q_lora_rank"),
    *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "num_local_experts", "num_experts"),
    *("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts"),
    *("shared_expert_intermediate_size", "first_k_dense_replace", "decoder_sparse_step"),
    "moe_layer_freq",
)
_TIED = ("gpt2", "gemma", "smollm3")  # where tie_word_embeddings is not there
KNOWN = (*_LIKE_LLAMA, *_MOE, *_DEEPSEEK, "gpt_neox", "gpt2")


def read_config(path: str | Path) -> ModelShape:
    """The sizes in a ``config.json``.

    Raises:
        ValueError: no such file, no JSON (with line and column), or keys that are missing.
    """
    file = Path(path)
    if file.is_dir():
        raise Refusal("refusal.file.folder", path=repr(str(path)))
    try:
        with file.open(encoding="utf-8-sig") as opened:  # an editor may have put a mark before it
            text = opened.read(_MOST_TEXT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(
            "refusal.file.unreadable", name="model", path=repr(str(path)), why=error
        ) from None
    if not text.strip():
        raise Refusal("refusal.file.empty", path=file)
    if len(text) > _MOST_TEXT:
        raise Refusal("refusal.file.large", path=file, most=_MOST_TEXT)
    config = _parsed(text, file)
    if not isinstance(config, dict):
        raise Refusal("refusal.file.object", path=file, kind=type(config).__name__)
    folder = file.absolute().parent.name or "config"  # that of the current folder too
    return shape_of(config, name=folder if file.name == "config.json" else file.stem)


def _parsed(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = {"line": error.lineno, "column": error.colno, "why": error.msg}
        raise Refusal("refusal.file.json", path=file, **where) from None
    except RecursionError:
        raise Refusal("refusal.file.deep", path=file) from None
    except ValueError:  # Python reads no number of more than 4,300 digits
        raise Refusal("refusal.file.digits", path=file) from None


@cache
def published_models() -> dict[str, Mapping[str, Any]]:
    """The configurations of ``models.json`` by name; each has a "source"."""
    return json.loads(_FILE.read_text(encoding="utf-8"))["models"]


def published_model(name: str) -> ModelShape:
    """A model of ``models.json`` or of ``dlcourse.formulas.sizes``, or a file.

    Raises:
        ValueError: neither; it names those that are known.
    """
    key = name.lower()
    if key in published_models():
        return shape_of(published_models()[key], name=key)
    if key in MODELS:
        return gpt_shape(MODELS[key], name=key)
    if name.endswith(".json") or _is_there(name):
        return read_config(name)
    known = ", ".join(sorted([*published_models(), *MODELS]))
    raise Refusal("refusal.model.unknown", model=repr(name[:80]), known=known)


def _is_there(name: str) -> bool:
    try:
        return name != "" and Path(name).exists()
    except (OSError, ValueError):  # longer than a path may be; a zero byte
        return False


def shape_of(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """The sizes in a configuration that has been read.

    Raises:
        ValueError: keys are missing, or a value is not what it must be.
    """
    inner = config.get("text_config")  # of a model that reads pictures too
    if isinstance(inner, Mapping) and "hidden_size" not in config:
        config = inner
    for key in _WHOLE:
        value = config.get(key)
        if value is not None and (type(value) is not int or value < 0):
            raise Refusal("refusal.config.null", model=name, entry=key, value=repr(value))
    if not isinstance(config.get("mlp_only_layers") or [], list):
        raise Refusal("refusal.config.list", model=name, entry="mlp_only_layers")
    kind = str(config.get("model_type", ""))
    sizes = _sizes(config, _GPT2 if kind == "gpt2" else _LLAMA, kind, name)
    heads = sizes["heads"]
    head_dim = config.get("head_dim") or sizes["hidden"] // heads
    common: dict[str, Any] = {
        "name": name,
        **sizes,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "value_dim": head_dim,
        "tied": bool(config.get("tie_word_embeddings", kind in _TIED)),
    }
    if kind == "gpt2":
        common |= dict(ffn=config.get("n_inner") or 4 * sizes["hidden"], gated=False)
        common |= dict(positions=config.get("n_positions", 1024), norm_bias=True, qkv_bias=True)
        return ModelShape(**common, out_bias=True, mlp_bias=True, dropout=True)
    if kind == "gpt_neox":
        bias = bool(config.get("attention_bias", True))
        common |= dict(gated=False, norm_bias=True, qkv_bias=bias, out_bias=bias, mlp_bias=True)
        return ModelShape(**common)
    bias = bool(config.get("attention_bias", False))
    common |= dict(qkv_bias=bias or kind.startswith("qwen2"), out_bias=bias)
    common |= dict(mlp_bias=bool(config.get("mlp_bias", False)), qk_norm=kind.startswith("qwen3"))
    if kind in _DEEPSEEK or "kv_lora_rank" in config:
        return ModelShape(**common | _latent(config, name), **_experts(config, kind, sizes, name))
    if _expert_key(config):
        return ModelShape(**common, **_experts(config, kind, sizes, name))
    return ModelShape(**common)


def _sizes(
    config: Mapping[str, Any], keys: Mapping[str, tuple[str, ...]], kind: str, name: str
) -> dict[str, int]:
    missing = [names[0] for names in keys.values() if not any(key in config for key in names)]
    known, about = ", ".join(KNOWN), {"model": name, "kind": repr(kind)}
    if missing:
        lacking = {"model": name, "missing": ", ".join(missing)}
        if kind in KNOWN:
            raise Refusal("refusal.config.missing", **lacking)
        if not kind:
            raise Refusal("refusal.config.no_kind", known=known, **lacking)
        raise Refusal("refusal.config.kind_missing", kind=repr(kind), known=known, **lacking)
    if kind and kind not in KNOWN:
        raise Refusal("refusal.config.kind", known=known, **about)
    if kind in (*_MOE, *_DEEPSEEK) and not any(key in config for key in _EXPERTS):
        raise Refusal("refusal.config.experts", names=", ".join(_EXPERTS), **about)
    found = {size: config[next(k for k in names if k in config)] for size, names in keys.items()}
    for size, value in found.items():
        if type(value) is not int or value < 1:
            raise Refusal(
                "refusal.config.whole", model=name, entry=keys[size][0], value=repr(value)
            )
    if found["hidden"] % found["heads"] and not config.get("head_dim"):
        sizes = {"heads": found["heads"], "hidden": found["hidden"]}
        raise Refusal("refusal.config.heads", model=name, **sizes)
    return found


def _needed(config: Mapping[str, Any], name: str, *keys: str) -> list[int]:
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise Refusal("refusal.config.missing", model=name, missing=", ".join(missing))
    return [config[key] for key in keys]


def _latent(config: Mapping[str, Any], name: str) -> dict[str, int]:
    rank, nope, rope, value = _needed(
        config, name, "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"
    )
    return dict(
        kv_rank=rank,
        rope_dim=rope,
        head_dim=nope + rope,
        value_dim=value,
        q_rank=config.get("q_lora_rank") or 0,
        kv_heads=config["num_attention_heads"],
    )


def _expert_key(config: Mapping[str, Any]) -> str | None:
    return next((key for key in _EXPERTS if config.get(key)), None)


def _experts(
    config: Mapping[str, Any], kind: str, sizes: Mapping[str, int], name: str
) -> dict[str, Any]:
    key = _expert_key(config)
    if key is None:
        return {}
    (top_k,) = _needed(config, name, "num_experts_per_tok")
    width = config.get("moe_intermediate_size") or sizes["ffn"]
    dense = (config.get("first_k_dense_replace") or 0) + len(config.get("mlp_only_layers") or [])
    step = config.get("decoder_sparse_step") or config.get("moe_layer_freq") or 1
    return dict(
        experts=config[key],
        top_k=top_k,
        expert_ffn=width,
        shared_ffn=config.get("shared_expert_intermediate_size")
        or (config.get("n_shared_experts") or 0) * width,
        shared_gate=bool(config.get("shared_expert_intermediate_size")),
        router_bias=kind in ("deepseek_v3", "kimi_k2"),
        moe_layers=max(0, sizes["layers"] - dense) // step,
    )
