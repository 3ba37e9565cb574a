"""The figures and tables of lesson 10, each one call; what they rest on is checked, and said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.charts import sweep_figure
from dlcourse.figures.held import Held, Said, Together, held, largest
from dlcourse.figures.memory_by_category import memory_by_category_figure
from dlcourse.figures.picture import Picture, spans
from dlcourse.figures.tables import Table
from dlcourse.formulas.activations import BYTES_KEPT, activation_peak, weight_copy_bytes
from dlcourse.formulas.number_formats import largest_number, smallest_number, spacing
from dlcourse.formulas.parameters import num_parameters
from dlcourse.formulas.recipe import PRECISIONS
from dlcourse.formulas.sizes import GPT2_LARGE, GPTConfig
from dlcourse.formulas.states import state_bytes
from dlcourse.words.strings import t

if TYPE_CHECKING:
    import plotly.graph_objects as go

CONFIG = GPTConfig()  # the model whose memory the lesson measures
BATCH: dict[str, Any] = {"micro_batch": 4, "block": 128}
NUM_PARAMETERS = num_parameters(CONFIG)
STATES = {way: state_bytes(NUM_PARAMETERS, precision=way) for way in PRECISIONS}
ACTIVATIONS = {way: activation_peak(CONFIG, **BATCH, precision=way) for way in PRECISIONS}

FORMATS = {"float32": (8, 23), "bfloat16": (8, 7), "float16": (5, 10), "float8_e5m2": (5, 2)}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Relative difference of the first losses: bfloat16 has 8 significant bits, float16 has 11
ALLOWED = {"autocast": 0.01, "master": 0.01, "float16": 0.002}

Memory = Mapping[str, Sequence[Mapping[str, int]]]  # way -> bytes by category: at the end, at peak


def range_and_step(exponent_bits: int, mantissa_bits: int) -> Picture:
    """From the smallest to the largest number of a type, and the step after 1; beside real ones."""
    bits = exponent_bits, mantissa_bits
    name = next((n for n, both in FORMATS.items() if both == bits), "")
    mine = name or t("mixed_precision.explore.yours")
    rows, texts = {}, {}
    for label, (e, m) in {**({} if name else {mine: bits}), **FORMATS}.items():
        rows[label] = smallest_number(e, m), largest_number(e, m)
        small, large = (f"{end:.2g}" for end in rows[label])
        step = f"{spacing(1, m):.2g}"
        texts[label] = t("mixed_precision.explore.text", small=small, large=large, step=step)
    title = t(
        "mixed_precision.explore.title",
        bits=1 + sum(bits),
        name=f" ({name})" if name else "",
        large=_number(largest_number(*bits)),
        step=f"{spacing(1, mantissa_bits):.2g}",
    )
    axis = t("mixed_precision.explore.axis")
    return spans(rows, title=title, axis=axis, limits=(-50, 40), texts=texts, mark=mine)


def show_types(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Together:
    """The types in which each operator of a forward runs, in ours and in torch's autocast."""
    rows = [[name, ours[name], theirs.get(name, "")] for name in ours]
    table = Table([t("mixed_precision.operator"), "Cast", "torch.autocast"], rows)
    different = sum(ours[name] != theirs.get(name) for name in ours)
    return Together(table, _held("types", different, allowed=0))


def show_backward(in_32: Sequence[float], gradient: str) -> Together:
    """Of backward's products, what runs in float32; and the type of the gradients it ends in."""
    line = _held("backward", largest(in_32), allowed=0, unit="%")
    return Together(line, Said(t("mixed_precision.gradient", dtype=gradient)))


def show_memory(memory: Memory) -> go.Figure:
    """Bytes by category at the peak of a step, for each way to use 16 bits."""
    for way in PRECISIONS:
        end, peak = memory[way]
        states = sum(end[name] for name in STATES[way]) - sum(STATES[way].values())
        _held("states", states, allowed=1000)
        off = 100 * (peak["activations"] / ACTIVATIONS[way] - 1)
        _held("activations", off, allowed=5, unit="%")
    shares = {way: f"{share:.0%}" for way, share in _shares(memory).items()}
    rows = {t(f"mixed_precision.way.{way}"): memory[way][1] for way in PRECISIONS}
    return memory_by_category_figure(rows, title=t("mixed_precision.peak", **shares))


def show_kept() -> Table:
    """Bytes that a block stores for a token, in units of the model's width, by what reads them."""
    parts = {
        "stream": ("attention_norm", "mlp_norm"),
        "qkv_in": ("q, k, v",),
        "qkv": ("attention",),
        "attention": ("proj",),
        "mlp_in": ("up",),
        "hidden": ("gelu", "down"),
        "together": tuple(BYTES_KEPT),
    }
    rows = []
    for name, readers in parts.items():
        columns = zip(*(BYTES_KEPT[reader] for reader in readers), strict=True)
        rows.append([t(f"mixed_precision.kept.{name}"), *(f"{sum(c)}C" for c in columns)])
    ways = [t(f"mixed_precision.way.{way}") for way in ("float32", "autocast", "bfloat16")]
    share = weight_copy_bytes(CONFIG) / ACTIVATIONS["autocast"]
    caption = t("mixed_precision.copies", share=f"{share:.0%}")
    return Table([t("mixed_precision.kept"), *ways], rows, caption=caption)


def show_lost(weight: float) -> Held:
    """That a master weight has taken the thousand updates."""
    return _held("master", weight, allowed=1e-3)


def show_large() -> go.Figure:
    """Peak of GPT-2 large, of that in float32, over the batch."""
    curves = {
        t(f"mixed_precision.way.{way}"): [100 * ratio for ratio in _ratios(way)]
        for way in PRECISIONS[1:]
    }
    best = {way: f"{min(_ratios(way)):.0%}" for way in ("autocast", "master")}
    return sweep_figure(
        BATCHES,
        curves,
        x_title=t("mixed_precision.axis.batch"),
        y_title=t("mixed_precision.axis.share"),
        log_x=True,
        y_unit="%",
        title=t("mixed_precision.large", **best),
    )


def show_large_gb() -> Table:
    """Peak of GPT-2 large with 8 sequences of 1,024 tokens, in GB."""
    rows = [
        [t(f"mixed_precision.way.{way}"), f"{_peak_of_large(way, 8) / 1e9:.1f} GB"]
        for way in PRECISIONS
    ]
    return Table([t("mixed_precision.way"), t("mixed_precision.large.peak")], rows)


def show_window(shares: Mapping[int, Mapping[int, Sequence[float]]]) -> go.Figure:
    """Percent of the gradients that float16 makes 0 or infinite, over the loss scale.

    shares: power of 2 by which the tokens are more than 256 -> power of the scale -> both percents.
    """
    exponents = [*shares[0]]
    curves = {
        t("mixed_precision.zero", tokens=f"{256 * 2**n:,}"): [zero for zero, _ in row.values()]
        for n, row in shares.items()
    }
    curves[t("mixed_precision.infinite")] = [infinite for _, infinite in shares[0].values()]
    few, many = shares[0][0][0], shares[8][0][0]
    assert few < 1 < many and shares[0][24][1] > 5, f"shares of gradients: {shares}"
    return sweep_figure(
        exponents,
        curves,
        x_title=t("mixed_precision.axis.scale"),
        y_title=t("mixed_precision.axis.gradients"),
        y_unit="%",
        title=t("mixed_precision.window", few=f"{few:.2g}%", many=f"{many:.0f}%"),
    )


def show_scales(ours: Sequence[float], theirs: Sequence[float]) -> go.Figure:
    """The loss scale over the steps, of ours and of torch's scaler."""
    off = largest(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    _held("scales", off, allowed=0)
    powers = {
        name: [math.log2(scale) for scale in scales]
        for name, scales in (("TryingScaler", ours), ("GradScaler", theirs))
    }
    mine = powers["TryingScaler"]
    before = [24, *mine]
    skipped = sum(after < now for now, after in zip(before, mine, strict=False))
    assert 2 <= skipped < 16, f"{skipped} steps were skipped"
    return sweep_figure(
        range(1, len(mine) + 1),
        powers,
        x_title=t("figure.axis.step"),
        y_title=t("mixed_precision.axis.power"),
        title=t("mixed_precision.recovered", skipped=skipped, of=len(mine)),
    )


def show_shards(
    alone: Sequence[tuple[bool, float]], together: Sequence[tuple[bool, float]]
) -> Table:
    """What each rank did when rank 0 met an infinity, each for itself and as a group."""
    assert len(set(alone)) == min(2, len(alone)), f"each for itself: {alone}"
    assert set(together) == {(False, 512.0)}, f"together: {together}"
    done = {True: t("mixed_precision.stepped"), False: t("mixed_precision.skipped")}
    rows = [
        [rank, *(f"{done[stepped]}, {scale:.0f}" for stepped, scale in both)]
        for rank, both in enumerate(zip(alone, together, strict=True))
    ]
    return Table([t(f"mixed_precision.{name}") for name in ("rank", "no_group", "group")], rows)


def show_wire(sent: Mapping[str, tuple[str, float]]) -> Table:
    """The type and the bytes a parameter of what DDP gives to all-reduce, by the way to train."""
    names = {way: t(f"mixed_precision.way.{way}") for way in sent if way != "hook"}
    names["hook"] = "fp16_compress_hook"
    rows = [[names[way], dtype, f"{size:.0f}"] for way, (dtype, size) in sent.items()]
    return Table([t(f"mixed_precision.{name}") for name in ("way", "type", "per_parameter")], rows)


def show_same(apart: Mapping[str, float]) -> Together:
    """How far the losses of each way are from one process in float32."""
    return Together(
        *(
            _held("same", off, allowed=ALLOWED[way], way=t(f"mixed_precision.way.{way}"))
            for way, off in apart.items()
        )
    )


def show_speeds(speeds: Sequence[tuple[str, bool, float]]) -> Table:
    """Time of a product in each type, of that in float32, and whether the device has units."""
    units = {True: t("mixed_precision.units.yes"), False: t("mixed_precision.units.no")}
    rows = [[name, units[has], f"{s / speeds[0][2]:.3g}×"] for name, has, s in speeds]
    return Table([t(f"mixed_precision.{name}") for name in ("type", "units", "time")], rows)


def show_eight_bits(errors: Sequence[tuple[str, float, float]]) -> Table:
    """Error of small gradients in 8 bits, cast as they are and with a scale for the tensor."""
    rows = [[name, f"{plain:.1%}", f"{scaled:.1%}"] for name, plain, scaled in errors]
    return Table([t(f"mixed_precision.{name}") for name in ("type", "unscaled", "scaled")], rows)


def figures_of_d2(memory: Memory, in_32: float) -> dict[str, Any]:
    """What this lesson measured for claim D2, by the names of its figures."""
    shares = _shares(memory)
    states = sum(memory["autocast"][0][name] for name in STATES["autocast"])
    return {
        "backward": 100 - in_32,
        "states": states / NUM_PARAMETERS,
        "autocast": 100 * shares["autocast"],
        "master": 100 * shares["master"],
        "bfloat16": 100 * shares["bfloat16"],
        "large_autocast": 100 * _ratios("autocast")[-1],
        "large_master": 100 * _ratios("master")[-1],
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value:.2g}"


def _shares(memory: Memory) -> dict[str, float]:
    """Peak of each way, of that in float32."""
    top = {way: sum(memory[way][1].values()) for way in PRECISIONS}
    return {way: size / top["float32"] for way, size in top.items()}


def _peak_of_large(way: str, sequences: int) -> float:
    """Bytes at the peak: states, and activations as far as gradients do not take their place."""
    kept = state_bytes(num_parameters(GPT2_LARGE), precision=way)
    active = activation_peak(GPT2_LARGE, micro_batch=sequences, block=1024, precision=way)
    return sum(kept.values()) + max(0, active - kept["gradients"])


def _ratios(way: str) -> list[float]:
    return [_peak_of_large(way, b) / _peak_of_large("float32", b) for b in BATCHES]


def _held(name: str, difference: float, *, allowed: float, unit: str = "", **words: Any) -> Held:
    what = t(f"mixed_precision.held.{name}", **words)
    because = t(f"mixed_precision.held.{name}.because")
    return held(what, abs(difference), allowed=allowed, because=because, unit=unit)
