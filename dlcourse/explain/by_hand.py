"""The same training by hand: a cell for ``%%ranks`` in this course's code.

What a configuration asks for and this course does not do by hand is never left out in silence: it
is in ``ByHand.missing``, and in a comment of the code (``not_by_hand.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dlcourse.explain.hand_optimizer import optimizer_code, schedule_code
from dlcourse.explain.implied import BATCH
from dlcourse.explain.keys import Keys
from dlcourse.explain.not_by_hand import not_by_hand
from dlcourse.explain.settings import Settings, number
from dlcourse.formulas.batch import derived_batch
from dlcourse.words.strings import t

_WRAPPERS = {
    0: ("dlcourse.parallel.data", "OverlappedDataParallel", "no ZeRO: every rank has whole copies"),
    1: ("dlcourse.parallel.zero", "ZeRO1", "zero_optimization.stage 1"),
    2: ("dlcourse.parallel.zero2", "ZeRO2", "zero_optimization.stage 2"),
    3: ("dlcourse.parallel.zero3", "ZeRO3", "zero_optimization.stage 3"),
}
_OFFLOADED = (
    "dlcourse.training.sharding_offload.zero3_offload",
    "OffloadedZeRO3",
    "zero_optimization.stage 3, offload_param",
)


@dataclass
class ByHand:
    """Code, and in words what it leaves out. ``code`` is "" where nothing can be trained."""

    code: str
    missing: list[str] = field(default_factory=list)


def by_hand(settings: Settings, keys: Keys, *, refused: bool = False) -> ByHand:
    """The code for a configuration; none for one that DeepSpeed refuses."""
    sizes = None if refused else _sizes(settings)
    if sizes is None or settings.stage is None:
        return ByHand("", [t("explain.hand.no_batch")])
    optimizer = optimizer_code(settings, keys)
    schedule = schedule_code(settings, keys, lr=optimizer.lr)
    missing = [*not_by_hand(settings, keys), *optimizer.missing, *schedule.missing]
    module, wrapper, why = _OFFLOADED if settings.offloads_shards else _WRAPPERS[settings.stage]
    imports = {
        "from dlcourse.corpus import Corpus",
        "from dlcourse.models.gpt import GPT",
        f"from {module} import {wrapper}",
        "from dlcourse.training.accumulation import sending, split",
        *optimizer.imports,
        *schedule.imports,
    }
    numbers = [
        "STEPS, BLOCK = 4, 64  # training steps, tokens of a sequence",
        f"MICRO_BATCH = {sizes[0]}  # train_micro_batch_size_per_gpu",
        f"ACCUMULATE = {sizes[1]}  # gradient_accumulation_steps",
    ]
    setting_up = ["corpus = Corpus()", "model = GPT().to(device)"]
    if "activation_checkpointing" in settings.config:
        imports.add("from dlcourse.training.checkpointing.segments import checkpoint_blocks")
        setting_up.append("checkpoint_blocks(model, [1] * len(model.blocks))  # every block")
    half = ""
    if settings.bf16 and settings.stage:
        half = ", dtype=torch.bfloat16"
    elif settings.bf16:
        setting_up.append("model.to(torch.bfloat16)  # bf16")
    setting_up.append(f"model = {wrapper}(model{half})  # {why}")
    precision = _precision(settings)
    imports |= set(precision.imports)
    setting_up += [*optimizer.setting_up, *precision.setting_up]
    clip = _clip(settings, keys)
    numbers += clip[:1]
    step = [
        "batch = corpus.batch(",
        "    step,",
        "    rank=rank,",
        "    world_size=world_size,",
        "    micro_batch=MICRO_BATCH * ACCUMULATE,",
        "    block=BLOCK,",
        ")",
        "tokens, targets = (half.to(device) for half in batch)",
        "optimizer.zero_grad()",
        "mean = 0.0",
        "for number, (x, y) in enumerate(split(tokens, targets, accumulate=ACCUMULATE), start=1):",
        "    with sending(model, last=number == ACCUMULATE):  # the last backward sends",
        *[f"        {line}" for line in precision.forward],
        "    mean += loss.item() / ACCUMULATE",
        "model.sync_gradients()",
        *_sum(settings),
        *precision.before_clip,
        *clip[1:],
        *schedule.step,
        *(optimizer.step or precision.step),
        *(["model.sync_parameters()  # everybody's new shards"] if settings.stage else []),
        "losses.append(mean)",
    ]
    lines = [
        *[f"# {line}" for text in missing for line in _folded(text)],
        *sorted(imports),
        "",
        *numbers,
        "",
        *setting_up,
        "losses = []",
        "for step in range(STEPS):",
        *[f"    {line}" for line in step],
        "losses  # of this rank's part of the batch",
    ]
    return ByHand("\n".join(lines) + "\n", missing)


def _sizes(settings: Settings) -> tuple[str, str] | None:
    """Micro-batch and accumulation as Python: numbers, or what follows from ``world_size``."""
    given = [number(settings.config.get(name)) for name in BATCH]
    batch, micro, accumulate = (None if v is None else int(v) for v in given)
    if any(value is not None and value < 1 for value in (batch, micro, accumulate)):
        return None
    if settings.world_size is not None:
        try:
            sizes = derived_batch(batch, micro, accumulate, world_size=settings.world_size)
        except ValueError:
            return None
        return str(sizes[1]), str(sizes[2])
    if batch is None:
        return (str(micro), str(accumulate or 1)) if micro else None
    if micro is None:
        accumulate = accumulate or 1
        return f"{batch} // world_size // {accumulate}", str(accumulate)
    return str(micro), str(accumulate or f"{batch} // {micro} // world_size")


@dataclass
class _Precision:
    """The lines that 16 bits need."""

    imports: list[str] = field(default_factory=list)
    setting_up: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)
    before_clip: list[str] = field(default_factory=list)
    step: list[str] = field(default_factory=list)


def _precision(settings: Settings) -> _Precision:
    plain = ["loss = model(x, y)", "(loss / ACCUMULATE).backward()"]
    dtype = settings.autocast_dtype
    if not settings.fp16 and dtype is None:
        return _Precision(forward=plain, step=["optimizer.step()"])
    dtype = "float16" if settings.fp16 else dtype
    folder = "dlcourse.training.mixed_precision"
    made = _Precision(imports=[f"from {folder}.autocast import Autocast"])
    cast = f"with Autocast(device.type, torch.{dtype}):"
    if dtype != "float16":
        made.forward = [cast, "    loss = model(x, y)", plain[1]]
        made.step = ["optimizer.step()"]
        return made
    made.imports.append(f"from {folder}.loss_scaler import LossScaler")
    fp16: dict[str, Any] = settings.block("fp16")
    static = number(fp16.get("loss_scale", 0)) or 0
    power = number(fp16.get("initial_scale_power", 16))
    scale = repr(static) if static else f"2.0**{16 if power is None else int(power)}"
    window = number(fp16.get("loss_scale_window", 1000)) or 1000
    interval = 10**9 if static else max(1, int(window))
    together = ", process_group=dist.group.WORLD" if settings.stage else ""
    made.setting_up = [f"scaler = LossScaler({scale}, growth_interval={interval}{together})"]
    made.forward = [cast, "    loss = model(x, y)", "scaler.scale(loss / ACCUMULATE).backward()"]
    made.before_clip = ["scaler.unscale_(optimizer)  # and look for infinities"]
    made.step = ["scaler.step(optimizer)  # not after an overflow", "scaler.update()"]
    return made


def _clip(settings: Settings, keys: Keys) -> list[str]:
    """First the number, then what clips by it; nothing where nothing is clipped."""
    key = keys.get("gradient_clipping")
    default = key.default if key is not None else 0.0
    given = settings.config.get("gradient_clipping", default)
    norm = number(default if given == "auto" else given)
    if not norm or norm < 0:
        return []
    head = f"MAX_NORM = {norm!r}  # gradient_clipping"
    if "gradient_clipping" not in settings.config:
        head += f", the default of DeepSpeed {keys.version}"
    if not settings.stage:
        return [head, "torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)"]
    return [
        head,
        "# a rank has a part of the gradients: the squares are added over the ranks",
        "grads = [shard.grad for shard in model.shards if shard.grad is not None]",
        "square = torch.stack([grad.float().square().sum() for grad in grads]).sum()",
        *(["square = square.to(device)  # from the host"] if settings.offloads_shards else []),
        "dist.all_reduce(square)",
        "torch.nn.utils.clip_grads_with_norm_(model.shards, MAX_NORM, square.sqrt())",
    ]


def _sum(settings: Settings) -> list[str]:
    """The sum over the ranks in place of their mean."""
    if settings.config.get("gradient_allreduce_op") != "sum":
        return []
    parameters = "model.shards" if settings.stage else "model.parameters()"
    return [f"for p in {parameters}:", "    p.grad *= world_size  # gradient_allreduce_op: sum"]


def _folded(text: str, width: int = 96) -> list[str]:
    """A comment's lines."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
