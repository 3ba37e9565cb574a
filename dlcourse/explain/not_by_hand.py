"""What a configuration asks for and the code by hand does not do, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dlcourse.explain.keys import Keys
from dlcourse.explain.settings import Settings, is_on, number
from dlcourse.words.strings import t

# What the code does, as far as it can, or what has no part in the numbers of training
_DONE = {
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("gradient_clipping", "gradient_allreduce_op", "optimizer", "scheduler", "fp16", "bf16"),
    *("bfloat16", "torch_autocast", "zero_optimization", "activation_checkpointing"),
    *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
}
_WATCHING = (
    *("tensorboard", "wandb", "csv_monitor", "comet", "flops_profiler", "comms_logger", "timers"),
    *("wall_clock_breakdown", "memory_breakdown", "steps_per_print", "dump_state", "log_level"),
)
_SIZES = (  # of ZeRO: what is sent when, not what is computed
    *("reduce_bucket_size", "allgather_bucket_size", "overlap_comm", "contiguous_gradients"),
    *("reduce_scatter", "allgather_partitions", "round_robin_gradients", "sub_group_size"),
    *("stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size"),
    *("stage3_param_persistence_threshold", "stage3_model_persistence_threshold"),
    *("use_multi_rank_bucket_allreduce", "stage3_gather_16bit_weights_on_model_save"),
)


def _on(path: str) -> Callable[[Settings], bool]:
    block, _, name = path.rpartition(".")
    return lambda settings: is_on(settings.block(block).get(name))


def _above(path: str, least: float) -> Callable[[Settings], bool]:
    block, _, name = path.rpartition(".")

    def asks(settings: Settings) -> bool:
        holder = settings.block(block) if block else settings.config
        return (number(holder.get(name)) or 0) > least

    return asks


# By the name of the words; what each of them covers needs no other mention
_CASES: dict[str, tuple[Callable[[Settings], Any], tuple[str, ...]]] = {
    "tensor_parallel": (_above("tensor_parallel.autotp_size", 1), ("tensor_parallel",)),
    "pipeline": (lambda s: s.block("pipeline"), ("pipeline",)),
    "expert_parallel": (_on("expert_parallel.enabled"), ("expert_parallel",)),
    "data_efficiency": (_on("data_efficiency.enabled"), ("data_efficiency",)),
    "sequence_parallel": (
        _above("sequence_parallel_size", 1),
        ("sequence_parallel_size", "data_parallel_size"),
    ),
    "compile": (_on("compile.deepcompile"), ("compile",)),
    "partition_activations": (_on("activation_checkpointing.partition_activations"), ()),
    "cpu_checkpointing": (_on("activation_checkpointing.cpu_checkpointing"), ()),
    "nvme": (lambda s: s.stage and s.offload("optimizer") == "nvme", ("aio",)),
    "offload_param": (lambda s: s.offloads_shards and s.offload("optimizer") == "none", ()),
    "offload_param_fp16": (
        lambda s: s.stage == 3 and s.fp16 and s.offload("param") != "none",
        ("aio",),
    ),
    "offload_param_nvme": (lambda s: s.offloads_shards and s.offload("param") == "nvme", ("aio",)),
    "quantized": (
        lambda s: any(n.startswith("zero_quantized") and is_on(v) for n, v in s.zero.items()),
        (),
    ),
    "hpz": (_above("zero_optimization.zero_hpz_partition_size", 1), ()),
    "sizes": (lambda s: s.stage and any(name in s.zero for name in _SIZES), ()),
    "fp16": (lambda s: s.fp16, ()),
    "bf16_masters": (_on("bf16.bf16_master_weights_and_grads"), ()),
}


def not_by_hand(settings: Settings, keys: Keys) -> Iterator[str]:
    """A sentence for each thing that is left out."""
    covered = set(_DONE)
    for name, (asks, paths) in _CASES.items():
        if asks(settings):
            yield t(f"explain.hand.{name}")
            covered |= set(paths)
    watching = [name for name in _WATCHING if name in settings.config]
    if watching:
        yield t("explain.hand.watching", names=", ".join(watching))
    rest = [
        name
        for name, value in settings.config.items()
        if keys.get(name) and name not in covered | set(_WATCHING) and not _is_off(value)
    ]
    if rest:
        yield t("explain.hand.rest", names=", ".join(rest))


def _is_off(value: Any) -> bool:
    if isinstance(value, dict):
        return not value or value.get("enabled") is False
    return value is None or value is False
