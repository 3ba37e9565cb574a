"""What contradicts itself, or has no effect because of another key.

Each rule stands for something that DeepSpeed 0.19.8 was seen to do: ``tests/test_explain.py`` holds
what is said to be refused against DeepSpeed's own configuration class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dlcourse.explain.finding import Finding
from dlcourse.explain.keys import Keys
from dlcourse.explain.settings import Settings, is_on, number
from dlcourse.words.strings import t

# What only stages from this one on read
_FROM_STAGE = {
    "reduce_bucket_size": 1,
    "allgather_bucket_size": 1,
    "overlap_comm": 1,
    "contiguous_gradients": 1,
    "reduce_scatter": 1,
    "round_robin_gradients": 1,
    "sub_group_size": 3,
    "offload_param": 3,
    "zero_hpz_partition_size": 3,
    "zero_quantized_weights": 3,
    "zero_quantized_gradients": 3,
}
_CHOICES = {  # of texts, in small letters
    "gradient_allreduce_op": ("mean", "sum"),
    "communication_data_type": ("fp32", "fp16", "bf16"),
    "seq_parallel_communication_data_type": ("fp32", "fp16", "bf16"),
    "checkpoint.tag_validation": ("ignore", "warn", "fail"),
}
_DYNAMIC = (
    "initial_scale_power",
    "loss_scale_window",
    "hysteresis",
    "consecutive_hysteresis",
    "min_loss_scale",
)


def conflicts(settings: Settings, keys: Keys) -> Iterator[Finding]:
    """A finding for each contradiction, and for each key that another one switches off."""
    yield from _twice_precision(settings)
    yield from _stage(settings, keys)
    yield from _switched_off(settings, keys)
    yield from _checkpointing(settings)
    yield from _optimizer(settings)
    yield from _choices(settings, keys)
    yield from _auto(settings.config, "", keys)


def _against(path: str, value: Any, text: str, *, refused: bool = False) -> Finding:
    return Finding("contradictory", path, value, None, text, refused=refused)


def _twice_precision(settings: Settings) -> Iterator[Finding]:
    if settings.fp16 and settings.bf16:
        yield _against("fp16.enabled", True, t("explain.conflict.fp16_bf16"), refused=True)
    if settings.config.get("bf16") is not None and "bfloat16" in settings.config:
        yield Finding("ignored", "bfloat16", {}, None, t("explain.ignored.bfloat16"))
    if settings.autocast and (settings.fp16 or settings.bf16):
        yield _against("torch_autocast.enabled", True, t("explain.conflict.autocast"))


def _stage(settings: Settings, keys: Keys) -> Iterator[Finding]:
    stage, zero = settings.stage, settings.block("zero_optimization")
    if stage is None:
        given = zero.get("stage")
        text = t("explain.conflict.stage")
        yield _against("zero_optimization.stage", given, text, refused=True)
        return
    if stage < 3 and settings.offload("param") != "none":
        text = t("explain.conflict.offload_param", stage=stage)
        yield _against("zero_optimization.offload_param", {}, text)
    if stage == 0 and settings.offload("optimizer") != "none":
        text = t("explain.conflict.offload_optimizer")
        yield _against("zero_optimization.offload_optimizer", {}, text)
    for what in ("optimizer", "param"):
        block = settings.block(f"zero_optimization.offload_{what}")
        if block.get("device") == "nvme" and not block.get("nvme_path"):
            path = f"zero_optimization.offload_{what}.nvme_path"
            yield _against(path, None, t("explain.conflict.nvme_path"))
    for kind in ("fp16", "bf16"):
        name = f"{kind}_master_weights_and_grads"
        if stage == 0 and is_on(settings.block(kind).get(name)):
            yield _against(f"{kind}.{name}", True, t("explain.conflict.masters"), refused=True)
    bf16 = settings.block("bf16")
    if is_on(bf16.get("bf16_optimizer_states")) and (
        stage == 0 or not is_on(bf16.get("bf16_master_weights_and_grads"))
    ):
        text = t("explain.conflict.states")
        yield _against("bf16.bf16_optimizer_states", True, text, refused=True)
    ratio = number(settings.block("zero_optimization.offload_optimizer").get("ratio", 1))
    if ratio is not None and ratio < 1 and stage < 3:
        path = "zero_optimization.offload_optimizer.ratio"
        yield _against(path, ratio, t("explain.conflict.ratio"), refused=True)
    if settings.config.get("gradient_allreduce_op") == "sum" and stage == 3:
        yield _against("gradient_allreduce_op", "sum", t("explain.conflict.sum"), refused=True)
    for name, value in zero.items():
        needs = 3 if name.startswith("stage3_") else _FROM_STAGE.get(name, 0)
        key = keys.get(f"zero_optimization.{name}")
        if name != "offload_param" and key and key.deprecated is None and stage < needs:
            text = t("explain.ignored.stage", needs=needs, stage=stage)
            value = {} if isinstance(value, dict) else value
            yield Finding("ignored", f"zero_optimization.{name}", value, key.default, text)


def _choices(settings: Settings, keys: Keys) -> Iterator[Finding]:
    for path, choices in _CHOICES.items():
        block, _, name = path.rpartition(".")
        holder = settings.block(block) if block else settings.config
        given = holder.get(name)
        if isinstance(given, str) and given.lower() not in choices and keys.get(path):
            text = t("explain.conflict.choice", choices=", ".join(choices))
            yield _against(path, given, text, refused=True)


def _switched_off(settings: Settings, keys: Keys) -> Iterator[Finding]:
    for block in (
        "fp16",
        "bf16",
        "torch_autocast",
        "flops_profiler",
        "autotuning",
        "tensorboard",
        "wandb",
        "csv_monitor",
        "comet",
        "hybrid_engine",
        "comms_logger",
    ):
        given = settings.block(block)
        if not given or is_on(given.get("enabled")) or given.get("enabled") == "auto":
            continue
        others = [name for name in given if name != "enabled" and keys.get(f"{block}.{name}")]
        if others:
            text = t("explain.ignored.off", block=block, names=", ".join(others))
            yield Finding("ignored", block, {}, None, text)
    fp16 = settings.block("fp16")
    if settings.fp16 and number(fp16.get("loss_scale", 0)):
        for name in _DYNAMIC:
            if name in fp16:
                text = t("explain.ignored.static")
                yield Finding("ignored", f"fp16.{name}", fp16[name], None, text)


def _checkpointing(settings: Settings) -> Iterator[Finding]:
    block = settings.block("activation_checkpointing")
    partition = is_on(block.get("partition_activations"))
    path = "activation_checkpointing"
    if is_on(block.get("contiguous_memory_optimization")):
        name = f"{path}.contiguous_memory_optimization"
        if not partition:
            yield _against(name, True, t("explain.conflict.contiguous"))
        if block.get("number_checkpoints") is None:
            yield _against(name, True, t("explain.conflict.number_checkpoints"))
    elif block.get("number_checkpoints") is not None:
        given = block["number_checkpoints"]
        text = t("explain.ignored.number_checkpoints")
        yield Finding("ignored", f"{path}.number_checkpoints", given, None, text)
    if is_on(block.get("cpu_checkpointing")) and not partition:
        yield _against(f"{path}.cpu_checkpointing", True, t("explain.conflict.cpu_checkpointing"))


def _optimizer(settings: Settings) -> Iterator[Finding]:
    params = settings.block("optimizer.params")
    if "max_grad_norm" in params:
        text = t("explain.conflict.max_grad_norm")
        path = "optimizer.params.max_grad_norm"
        yield _against(path, params["max_grad_norm"], text, refused=True)


def _auto(block: dict[str, Any], path: str, keys: Keys) -> Iterator[Finding]:
    for name, value in block.items():
        here = f"{path}.{name}".lstrip(".")
        if isinstance(value, dict):
            yield from _auto(value, here, keys)
        elif value == "auto":
            key, parent = keys.get(here), keys.get(path)
            if key is not None and key.default == "auto":
                continue
            dropped = parent is not None and parent.block == "model"
            word = "dropped" if dropped else "kept"
            yield _against(here, "auto", t(f"explain.auto.{word}"))
