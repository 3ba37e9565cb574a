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

_FILE = Path(__file__).with_name("models.json")
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
        raise ValueError(f"model={str(path)!r} is a folder: give the path of a config.json in it")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"model={str(path)!r} cannot be read: {error}") from None
    if not text.strip():
        raise ValueError(f"{file} is empty: a config.json is an object {{...}}")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    if not isinstance(config, dict):
        raise ValueError(
            f"{file} holds {type(config).__name__}: a config.json is an object {{...}}"
        )
    return shape_of(config, name=file.parent.name if file.name == "config.json" else file.stem)


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
    if name.endswith(".json") or (name and Path(name).exists()):
        return read_config(name)
    known = ", ".join(sorted([*published_models(), *MODELS]))
    raise ValueError(f"model={name!r} is unknown: give a config.json, or one of {known}")


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
            raise ValueError(f"config of {name}: {key}={value!r}: give a whole number, or null")
    if not isinstance(config.get("mlp_only_layers") or [], list):
        raise ValueError(f"config of {name}: mlp_only_layers holds no list of layers")
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
    if kind in (*_MOE, *_DEEPSEEK) and not any(key in config for key in _EXPERTS):
        missing.append(f"{' or '.join(_EXPERTS)} (null where there are none)")
    known = "" if kind in KNOWN else f" (known are {', '.join(KNOWN)})"
    about = f"config of {name}, model_type {kind or 'not given'!r}{known}"
    if missing:
        raise ValueError(f"{about}: missing {', '.join(missing)}")
    if known and kind:
        raise ValueError(
            f"{about}: its layers may be others; where they are those of a known one, give that "
            "model_type"
        )
    found = {size: config[next(k for k in names if k in config)] for size, names in keys.items()}
    for size, value in found.items():
        if type(value) is not int or value < 1:
            raise ValueError(
                f"config of {name}: {keys[size][0]}={value!r}: give a whole number of 1 or more"
            )
    if found["hidden"] % found["heads"] and not config.get("head_dim"):
        raise ValueError(
            f"config of {name}: {found['heads']} heads do not divide hidden size {found['hidden']}"
        )
    return found


def _needed(config: Mapping[str, Any], name: str, *keys: str) -> list[int]:
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise ValueError(f"config of {name}: missing {', '.join(missing)}")
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
