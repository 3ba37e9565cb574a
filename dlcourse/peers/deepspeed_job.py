"""The job of ``dlcourse.training.by_hand`` in DeepSpeed: the same savings, from one JSON.

    config = config_of("bf16", "zero3", batch=64, micro_batch=16)
    step = training_step(GPT(), config)
    loss = step(tokens_BT, targets_BT)

Only one of the savings needs code as well: the block "activation_checkpointing" says *how*
DeepSpeed's own checkpoint function works, and somebody has to call that function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlcourse.models.gpt import GPT
from dlcourse.peers import deepspeed_engine
from dlcourse.training.accumulation import split
from dlcourse.training.checkpointing.segments import checkpoint_blocks

Config = dict[str, Any]
# What each saving adds to the JSON. "accumulate" follows from the sizes of batch and micro-batch
BLOCKS: dict[str, Config] = {
    "bf16": {"bf16": {"enabled": True}},
    "checkpoint": {"activation_checkpointing": {"partition_activations": False}},
    "zero3": {"zero_optimization": {"stage": 3}},
    "offload": {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}},
    "offload_param": {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
}
# A small model would stay whole: by default parameters under 100,000 elements are not divided, and
# a billion elements may stay gathered
_SMALL: Config = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 250_000,
    "reduce_bucket_size": 250_000,
}


def config_of(*savings: str, batch: int, micro_batch: int, small: bool = True) -> Config:
    """The JSON of a job, as a dict.

    Args:
        savings: some of ``BLOCKS``.
        batch: sequences of a step, of all ranks together.
        micro_batch: sequences that a rank takes at a time.
        small: with thresholds low enough for the lesson's small model.

    Raises:
        ValueError: an unknown saving.
    """
    if unknown := sorted(set(savings) - set(BLOCKS)):
        raise ValueError(f"savings holds {', '.join(unknown)}: give some of {', '.join(BLOCKS)}")
    config: Config = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_clipping": 1.0,
    }
    for saving in savings:
        for name, block in BLOCKS[saving].items():
            config[name] = config.get(name, {}) | block
    if small and "zero_optimization" in config:
        config["zero_optimization"] |= _SMALL
    return config


def wrap_blocks(gpt: GPT, config: Config) -> GPT:
    """The code that the block "activation_checkpointing" does not save anybody.

    DeepSpeed's checkpoint is told its settings, and put around each block.
    """
    deepspeed = deepspeed_engine.start(next(gpt.parameters()).device.type)
    deepspeed.checkpointing.configure(None, config)
    checkpoint = deepspeed.checkpointing.checkpoint
    return checkpoint_blocks(gpt, [1] * len(gpt.blocks), checkpoint)


def training_step(
    gpt: GPT, config: Config, *, wrap: bool = False, lr: float = 1e-3
) -> Callable[[Tensor, Tensor], Tensor]:
    """Give ``gpt`` and the JSON to DeepSpeed, with torch's AdamW.

    Args:
        wrap: put DeepSpeed's checkpoint around the blocks, which no JSON does.

    Returns:
        ``step(tokens_BT, targets_BT)``: a whole step on this rank's sequences, in as many
        micro-batches as the engine has made of the JSON. Its attribute ``engine`` is DeepSpeed's.
    """
    if wrap:
        gpt = wrap_blocks(gpt, config)
    engine = deepspeed_engine.engine(gpt, config, lr=lr)
    accumulate = engine.gradient_accumulation_steps()

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        total = torch.zeros((), device=tokens_BT.device)
        for tokens_MT, targets_MT in split(tokens_BT, targets_BT, accumulate=accumulate):
            loss = engine(tokens_MT, targets_MT)
            engine.backward(loss)  # divides by the number of micro-batches
            engine.step()  # counts them, and updates at the last one
            total += loss.detach() / accumulate
        return total

    step.engine = engine  # type: ignore[attr-defined]
    return step
