"""What follows from a configuration: also from what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dlcourse.explain.finding import Finding
from dlcourse.explain.keys import Keys
from dlcourse.explain.settings import Settings, number
from dlcourse.formulas.batch import derived_batch, fitting_worlds
from dlcourse.words.strings import t

BATCH = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)
_SHOWN_WORLDS = 12


def implied(settings: Settings, keys: Keys) -> Iterator[Finding]:
    """A finding for each thing that follows."""
    yield from _batch(settings)
    yield from _clipping(settings, keys)
    yield from _precision(settings)
    yield from _zero(settings)
    yield from _checkpointing(settings)
    yield from _optimizer(settings)


def _batch(settings: Settings) -> Iterator[Finding]:
    config, world = settings.config, settings.world_size
    given = [config.get(name) for name in BATCH]
    if any(value == "auto" for value in given):
        return
    if any(value is not None and number(value) is None for value in given):
        yield Finding("contradictory", BATCH[0], given, None, t("explain.batch.kind"), refused=True)
        return
    batch, micro, accumulate = (None if v is None else int(number(v) or 0) for v in given)
    if batch is None and micro is None:
        yield Finding("contradictory", BATCH[0], None, None, t("explain.batch.none"), refused=True)
        return
    if any(value is not None and value < 1 for value in (batch, micro, accumulate)):
        text = t("explain.batch.positive")
        yield Finding("contradictory", BATCH[0], batch, None, text, refused=True)
        return
    worlds = fitting_worlds(batch, micro, accumulate)
    if world is None:
        if batch is None:
            each = (micro or 0) * (accumulate or 1)
            yield Finding("implies", BATCH[0], None, None, t("explain.batch.any", each=each))
        elif worlds:
            text = t("explain.batch.worlds", batch=batch, worlds=_list(worlds))
            yield Finding("implies", BATCH[0], batch, None, text)
        else:
            text = t("explain.batch.no_world", batch=batch, micro=micro, accumulate=accumulate or 1)
            yield Finding("contradictory", BATCH[0], batch, None, text, refused=True)
        return
    try:
        made = derived_batch(batch, micro, accumulate, world_size=world)
    except ValueError:
        fit = (
            t("explain.batch.fits", worlds=_list(worlds))
            if worlds
            else t("explain.batch.fits_none")
        )
        text = t(
            "explain.batch.refused", product=_product(batch, micro, accumulate, world), fits=fit
        )
        yield Finding("contradictory", BATCH[0], batch, None, text, refused=True)
        return
    missing = [
        name for name, value in zip(BATCH, (batch, micro, accumulate), strict=True) if value is None
    ]
    text = t("explain.batch.product", batch=made[0], micro=made[1], accumulate=made[2], world=world)
    if missing:
        text += " " + t("explain.batch.derived", names=", ".join(missing))
    tensor = number(settings.block("tensor_parallel").get("autotp_size")) or 1
    if tensor > 1:
        text += " " + t("explain.batch.tensor", tensor=int(tensor))
    if batch is not None:
        text += " " + t("explain.batch.fits", worlds=_list(worlds))
    yield Finding("implies", BATCH[0], made[0], None, text)


def _product(batch: int | None, micro: int | None, accumulate: int | None, world: int) -> str:
    parts = [str(value) for value in (micro, accumulate) if value is not None]
    return f"{batch} ≠ {' x '.join([*parts, '?'][:2])} x {world}"


def _list(worlds: list[int]) -> str:
    """ "1, 2, 4"; of many the first ones."""
    text = ", ".join(map(str, worlds[:_SHOWN_WORLDS]))
    return text + (", …" if len(worlds) > _SHOWN_WORLDS else "")


def _clipping(settings: Settings, keys: Keys) -> Iterator[Finding]:
    if "gradient_clipping" in settings.config:
        return
    key = keys.get("gradient_clipping")
    if key is not None and key.default:
        text = t("explain.clipping.default", norm=key.default, version=keys.version)
        yield Finding("implies", "gradient_clipping", None, key.default, text)


def _precision(settings: Settings) -> Iterator[Finding]:
    if settings.fp16:
        fp16 = settings.block("fp16")
        static = number(fp16.get("loss_scale", 0))
        if static:
            yield Finding(
                "implies", "fp16.loss_scale", static, 0, t("explain.fp16.static", scale=static)
            )
        else:
            power = number(fp16.get("initial_scale_power", 16))
            if power is not None and -1000 < power < 1000:
                scale = f"{2.0**power:,.0f}" if 0 <= power < 60 else f"2^{power:g}"
                yield Finding(
                    "implies",
                    "fp16.initial_scale_power",
                    fp16.get("initial_scale_power", 16),
                    16,
                    t("explain.fp16.dynamic", power=f"{power:g}", scale=scale),
                )
    if settings.bf16:
        yield Finding("implies", "bf16", True, False, t("explain.bf16.masters"))


def _zero(settings: Settings) -> Iterator[Finding]:
    stage = settings.stage
    if stage is None:
        return
    name = "zero_optimization.stage"
    if not stage:
        yield Finding(
            "implies",
            name,
            None if settings.block("zero_optimization") == {} else 0,
            0,
            t("explain.zero.stage0"),
        )
        return
    world = settings.world_size
    yield Finding("implies", name, stage, 0, t(f"explain.zero.stage{stage}"))
    if world is not None and world == 1:
        yield Finding("implies", name, stage, 0, t("explain.zero.alone"))


def _checkpointing(settings: Settings) -> Iterator[Finding]:
    if "activation_checkpointing" in settings.config:
        yield Finding(
            "implies", "activation_checkpointing", {}, None, t("explain.checkpointing.alone")
        )


def _optimizer(settings: Settings) -> Iterator[Finding]:
    name = settings.optimizer
    if name is None:
        yield Finding("implies", "optimizer", None, None, t("explain.optimizer.none"))
        return
    params: dict[str, Any] = settings.block("optimizer.params")
    if name == "adam" and params.get("adam_w_mode", True) is not False:
        yield Finding("implies", "optimizer.type", "Adam", None, t("explain.optimizer.adam"))
    if name in ("adam", "adamw") and "weight_decay" not in params:
        torch_adam = bool(params.get("torch_adam"))
        text = t("explain.optimizer.decay", decay="0.01" if torch_adam else "0.0")
        yield Finding("implies", "optimizer.params.weight_decay", None, 0.0, text)
