"""The same training by hand: a cell for ``%%ranks`` in this course's code.

What a configuration asks for and this course does not do by hand is never left out in silence: it
is in ``ByHand.missing``, and in a comment of the code.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dlcourse.explain.implied import BATCH
from dlcourse.explain.keys import Keys
from dlcourse.explain.settings import Settings, is_on, number
from dlcourse.formulas.batch import derived_batch
from dlcourse.words.strings import t

_WRAPPERS = {
    0: ("data", "OverlappedDataParallel"),
    1: ("zero", "ZeRO1"),
    2: ("zero2", "ZeRO2"),
    3: ("zero3", "ZeRO3"),
}
_MISSING = {  # what switches it on, by the name of the words
    "tensor_parallel": lambda s: number(s.block("tensor_parallel").get("autotp_size")),
    "pipeline": lambda s: s.block("pipeline"),
    "expert_parallel": lambda s: is_on(s.block("expert_parallel").get("enabled")),
    "partition_activations": lambda s: is_on(
        s.block("activation_checkpointing").get("partition_activations")
    ),
    "cpu_checkpointing": lambda s: is_on(
        s.block("activation_checkpointing").get("cpu_checkpointing")
    ),
    "nvme": lambda s: "nvme" in (s.offload("optimizer"), s.offload("param")),
    "offload_param": lambda s: s.offload("param") != "none" and s.stage == 3,
    "data_efficiency": lambda s: is_on(s.block("data_efficiency").get("enabled")),
    "sequence_parallel": lambda s: (number(s.config.get("sequence_parallel_size")) or 1) > 1,
    "compile": lambda s: is_on(s.block("compile").get("deepcompile")),
    "hysteresis": lambda s: s.fp16,
}


@dataclass
class ByHand:
    """Code, and in words what it leaves out. ``code`` is "" where there is nothing to train."""

    code: str
    missing: list[str] = field(default_factory=list)


@dataclass
class _Script:
    """Parts of the code, put together at the end."""

    imports: set[str] = field(default_factory=set)
    numbers: list[str] = field(default_factory=list)
    before_wrap: list[str] = field(default_factory=list)
    wrap: list[str] = field(default_factory=list)
    before_step: list[str] = field(default_factory=list)
    step: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def by_hand(settings: Settings, keys: Keys) -> ByHand:
    """The code for a configuration, which must be one that can be trained."""
    sizes = _sizes(settings)
    if sizes is None or settings.stage is None:
        return ByHand("", [t("explain.hand.no_batch")])
    micro, accumulate = sizes
    script = _Script()
    script.numbers = [
        "STEPS, BLOCK = 4, 64  # training steps, tokens of a sequence",
        f"MICRO_BATCH = {micro}  # train_micro_batch_size_per_gpu",
        f"ACCUMULATE = {accumulate}  # gradient_accumulation_steps",
    ]
    script.missing = [t(f"explain.hand.{n}") for n, asks in _MISSING.items() if asks(settings)]
    _model(script, settings)
    _optimizer(script, settings)
    _clip(script, settings, keys)
    return ByHand(_joined(script, settings), script.missing)


def _sizes(settings: Settings) -> tuple[str, str] | None:
    """Micro-batch and accumulation as Python: numbers, or what follows from ``world_size``."""
    given = [
        None if v is None or v == "auto" else number(v) for v in map(settings.config.get, BATCH)
    ]
    batch, micro, accumulate = (None if v is None else int(v) for v in given)
    if settings.world_size is not None:
        try:
            _, micro, accumulate = derived_batch(
                batch, micro, accumulate, world_size=settings.world_size
            )
        except ValueError:
            return None
        return str(micro), str(accumulate)
    if batch is None:
        return (str(micro), str(accumulate or 1)) if micro else None
    if micro is None:
        return f"{batch} // world_size" + (f" // {accumulate}" if accumulate else ""), str(
            accumulate or 1
        )
    return str(micro), str(accumulate or f"{batch} // {micro} // world_size")


def _model(script: _Script, settings: Settings) -> None:
    script.imports |= {
        "from dlcourse.corpus import Corpus",
        "from dlcourse.models.gpt import GPT",
        "from dlcourse.training.accumulation import backward_equal, split",
    }
    if "activation_checkpointing" in settings.config:
        script.imports.add("from dlcourse.training.checkpointing.segments import checkpoint_blocks")
        script.before_wrap.append(
            "checkpoint_blocks(model, [1] * len(model.blocks))  # activation_checkpointing"
        )
    stage = settings.stage or 0
    module, wrapper = _WRAPPERS[stage]
    script.imports.add(f"from dlcourse.parallel.{module} import {wrapper}")
    half = ", dtype=torch.bfloat16" if settings.bf16 and stage else ""
    if settings.bf16 and not stage:
        script.before_wrap.append("model.to(torch.bfloat16)  # bf16")
    comment = f"  # zero_optimization.stage {stage}" if stage else "  # no ZeRO: whole copies"
    script.wrap.append(f"model = {wrapper}(model{half}){comment}")


def _optimizer(script: _Script, settings: Settings) -> None:
    """The optimizer of the configuration, with DeepSpeed's defaults where it gives none."""
    params = settings.block("optimizer.params")
    parameters = "model.shards" if settings.stage else "model.parameters()"
    lr = number(params.get("lr", 1e-3))
    lr = 1e-3 if lr is None else lr
    kind = settings.optimizer
    decay = number(params.get("weight_decay", 0.01 if params.get("torch_adam") else 0.0))
    betas = params.get("betas", (0.9, 0.999))
    if not isinstance(betas, list | tuple) or len(betas) != 2 or None in map(number, betas):
        betas = (0.9, 0.999)
    eps = number(params.get("eps", 1e-8)) or 1e-8
    arguments = f"lr={lr!r}, betas={tuple(betas)!r}, eps={eps!r}, weight_decay={decay or 0.0!r}"
    made = "torch.optim.AdamW"
    if kind is None:
        script.missing.append(t("explain.hand.no_optimizer"))
        arguments = f"lr={lr!r}"
    elif kind not in ("adam", "adamw"):
        script.missing.append(t("explain.hand.optimizer", kind=kind))
    if settings.bf16:
        made = "MasterAdamW"
        script.imports.add("from dlcourse.training.mixed_precision.master_adamw import MasterAdamW")
    script.wrap.append(f"optimizer = {made}({parameters}, {arguments})")


def _clip(script: _Script, settings: Settings, keys: Keys) -> None:
    key = keys.get("gradient_clipping")
    default = key.default if key is not None else 0.0
    given = settings.config.get("gradient_clipping", default)
    norm = number(default if given == "auto" else given)
    if not norm or norm < 0:
        return
    script.numbers.append(f"MAX_NORM = {norm!r}  # gradient_clipping")
    if not settings.stage:
        script.before_step.append("torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)")
        return
    script.before_step += [
        "# each rank has a part of the gradients: the squares are added over the ranks",
        "square = sum(s.grad.float().square().sum() for s in model.shards if s.grad is not None)",
        "dist.all_reduce(square)",
        "torch.nn.utils.clip_grads_with_norm_(model.shards, MAX_NORM, square.sqrt())",
    ]


def _joined(script: _Script, settings: Settings) -> str:
    after = ["model.sync_parameters()"] if settings.stage else []
    loop = [
        "batch = corpus.batch(",
        "    step, rank=rank, world_size=world_size,",
        "    micro_batch=MICRO_BATCH * ACCUMULATE, block=BLOCK,",
        ")",
        "tokens, targets = (half.to(device) for half in batch)",
        "optimizer.zero_grad()",
        "loss = backward_equal(model, split(tokens, targets, accumulate=ACCUMULATE))",
        "model.sync_gradients()",
        *script.before_step,
        "optimizer.step()",
        *after,
        "losses.append(loss.item())",
    ]
    lines = [
        *[f"# {text}" for text in script.missing],
        *sorted(script.imports),
        "",
        *script.numbers,
        "",
        "corpus = Corpus()",
        "model = GPT().to(device)",
        *script.before_wrap,
        *script.wrap,
        "losses = []",
        "for step in range(STEPS):",
        *[f"    {line}" for line in loop],
        "losses  # of this rank's part of the batch",
    ]
    return "\n".join(lines) + "\n"
