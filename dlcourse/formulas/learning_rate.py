"""The learning rate of each step, by the schedules that DeepSpeed has.

``step`` counts from 0 and is the step that is about to be taken. DeepSpeed sets a schedule's first
value when it is made and goes on *after* each step: a warm-up has its first value in two steps.

Source: ``deepspeed/runtime/lr_schedules.py`` of DeepSpeed 0.19; the range test is Smith, "A
disciplined approach to neural network hyper-parameters", 2018, https://arxiv.org/abs/1803.09820.
"""

from __future__ import annotations

import math


def warmup_lr(
    step: int,
    *,
    max_lr: float,
    min_lr: float = 0.0,
    warmup_steps: int = 1000,
    shape: str = "log",
    total_steps: int | None = None,
) -> float:
    """``WarmupLR``; with ``total_steps`` ``WarmupDecayLR``, which falls to 0 in a straight line.

    Args:
        warmup_steps: in which the rate rises from ``min_lr`` to ``max_lr``; at least 2 count.
        shape: of the rise, "log" or "linear".
    """
    done, warmup_steps = step - 1, max(2, warmup_steps)
    if done < 0:
        return min_lr
    if done < warmup_steps:
        share = _rise(done, warmup_steps, shape)
    elif total_steps is None:
        share = 1.0
    else:
        share = max(0.0, (total_steps - done) / max(1.0, total_steps - warmup_steps))
    return min_lr + (max_lr - min_lr) * share


def warmup_cosine_lr(
    step: int,
    *,
    lr: float,
    total_steps: int,
    warmup_steps: int = 1000,
    min_ratio: float = 0.0,
    cos_min_ratio: float = 0.0001,
    shape: str = "log",
) -> float:
    """``WarmupCosineLR``: rises to the optimizer's ``lr``, then falls as half a cosine.

    Args:
        min_ratio: share of ``lr`` at the start of the rise; the very first step has 0.
        cos_min_ratio: share of ``lr`` at the end.
    """
    done, warmup_steps = step - 1, max(2, warmup_steps)
    if done < 0:
        return 0.0
    if done < warmup_steps:
        return lr * (min_ratio + (1 - min_ratio) * _rise(done, warmup_steps, shape))
    progress = min(1.0, (done - warmup_steps + 1) / max(1, total_steps - warmup_steps))
    share = cos_min_ratio + (1 - cos_min_ratio) * (1 + math.cos(math.pi * progress)) / 2
    return lr * max(0.0, share)


def range_test_lr(
    step: int,
    *,
    min_lr: float = 1e-3,
    step_size: int = 2000,
    step_rate: float = 1.0,
    staircase: bool = False,
) -> float:
    """``LRRangeTest``: rises in a straight line, or in stairs of ``step_size`` steps."""
    interval = step / step_size
    return min_lr * (1 + step_rate * (math.floor(interval) if staircase else interval))


def _rise(done: int, warmup_steps: int, shape: str) -> float:
    """From 0 to 1; any shape but "linear" is "log", as in DeepSpeed."""
    if shape == "linear":
        return done / warmup_steps
    return math.log(done + 1) / math.log(warmup_steps)
