"""The figures and tables of lesson 11, each one call; what they rest on is checked, and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.charts import sweep_figure
from dlcourse.figures.held import Held, Together, held, largest
from dlcourse.figures.memory_by_category import memory_by_category_figure
from dlcourse.figures.memory_vs_recompute import Point, memory_vs_recompute_figure
from dlcourse.figures.picture import Picture, bars
from dlcourse.figures.tables import Table
from dlcourse.formulas.activations import (
    activation_peak,
    layer_bytes,
    layer_terms,
    quoted_terms,
    selective_peak,
)
from dlcourse.formulas.checkpoint_segments import every
from dlcourse.formulas.flops import step_flops
from dlcourse.formulas.sizes import GPT2_LARGE, GPTConfig
from dlcourse.words.strings import t
from dlcourse.words.units import human_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dlcourse.measure.run import Run

CONFIG = GPTConfig(n_layer=12, n_embd=64, block_size=64)  # the model of the lesson
BATCH: dict[str, Any] = {"micro_batch": 4, "block": 64}  # of one rank
EACH = [1] * CONFIG.n_layer
LARGE_BATCH: dict[str, Any] = {"micro_batch": 8, "block": 1024}
GPT3 = GPTConfig(n_layer=96, n_head=96, n_embd=12288)

Measured = tuple[float, int]  # FLOPs of a step, bytes of activations at their peak


def more_flops(segments: Sequence[int], config: GPTConfig = CONFIG, **batch: Any) -> float:
    """Percent that checkpoints add to the FLOPs of a step, by formula."""
    batch = batch or BATCH
    again = step_flops(config, **batch, segments=segments)
    return 100 * (again / step_flops(config, **batch) - 1)


def memory_and_flops(layers_in_a_segment: int, covered: int) -> Picture:
    """What checkpoints leave of the activations, and what they cost, for two models, by formula.

    covered: percent of the layers, from the first one on, that have checkpoints.
    """
    rows, texts = {}, {}
    for name, config, batch in (
        (t("checkpointing.explore.ours"), CONFIG, BATCH),
        ("GPT-2 large", GPT2_LARGE, LARGE_BATCH),
    ):
        layers = config.n_layer * covered // 100
        segments = every(layers, min(layers_in_a_segment, layers)) if layers else []
        peak = activation_peak(config, **batch, segments=segments)
        more = more_flops(segments, config, **batch)
        rows[name] = 100 * peak / activation_peak(config, **batch)
        texts[name] = t("checkpointing.explore.text", peak=human_bytes(peak), more=f"{more:.0f}%")
    ours, large = (f"{value:.0f}%" for value in rows.values())
    key = "title" if covered else "nothing"
    words: dict[str, Any] = {
        "covered": f"{covered}%",
        "k": layers_in_a_segment,
        "ours": ours,
        "large": large,
    }
    title = t(f"checkpointing.explore.{key}", **words)
    return bars(rows, title=title, axis=t("checkpointing.explore.axis"), limit=100, texts=texts)


def show_layer(measured: int) -> Together:
    """What a layer stores, by operator: of our GPT, and by the formula that everybody quotes."""
    ours, quoted = layer_terms(CONFIG, **BATCH), quoted_terms(CONFIG, **BATCH)
    rows = [[name, f"{ours[name]:,}", f"{quoted[name]:,.0f}"] for name in ours]
    sums = [f"{sum(ours.values()):,}", f"{sum(quoted.values()):,.0f}"]
    rows.append([t("checkpointing.sum"), *sums])
    heads = [t(f"checkpointing.{name}") for name in ("operator", "ours", "quoted")]
    line = _held("layer", measured - layer_bytes(CONFIG, **BATCH), allowed=0)
    return Together(Table(heads, rows), line)


def show_equal(plain: Run, light: Run, same: Sequence[bool]) -> Together:
    """That checkpoints changed no gradient, and that the formula knows what they store."""
    peak = light.memory.peaks("activations")[0]
    off = 100 * (peak / activation_peak(CONFIG, **BATCH, segments=EACH) - 1)
    more = 100 * (light.throughput.flops / plain.throughput.flops - 1)
    return Together(
        _held("bits", sum(not equal for equal in same), allowed=0),
        _held("peak", off, allowed=5, unit="%"),
        _held("flops", more - more_flops(EACH), allowed=0.1, unit="%"),
    )


def show_ways(found: Mapping[str, Measured]) -> Together:
    """Peak of activations and additional FLOPs of each kind of checkpoint around each layer."""
    rows = [
        [t(f"checkpointing.how.{name}"), human_bytes(peak), f"{more:.1f}%"]
        for name, (more, peak) in _points(found).items()
    ]
    heads = [t(f"checkpointing.{name}") for name in ("how", "peak", "flops")]
    off = 100 * (found["selective"][1] / selective_peak(CONFIG, **BATCH) - 1)
    saved = 100 * (1 - found["selective"][1] / found["none"][1])
    return Together(
        Table(heads, rows),
        _held("selective", off, allowed=5, unit="%", saved=f"{saved:.0f}%"),
    )


def show_chain(peaks: Mapping[int, float]) -> go.Figure:
    """Peak over the length of segments, of a chain whose layers store one value each."""
    best = min(peaks, key=lambda k: peaks[k])
    curves = {
        t("checkpointing.predicted"): [36 / k + k + 2 for k in peaks],
        t("checkpointing.measured"): list(peaks.values()),
    }
    return sweep_figure(
        [*peaks],
        curves,
        x_title=t("checkpointing.axis.segment"),
        y_title=t("checkpointing.axis.values"),
        title=t("checkpointing.chain", best=best),
    )


def show_gpt(groups: Mapping[int, Measured]) -> go.Figure:
    """The same of our GPT, whose layers store 16 times their input."""
    sizes = [peak for _, peak in groups.values()]
    expected = [activation_peak(CONFIG, **BATCH, segments=every(CONFIG.n_layer, k)) for k in groups]
    for size, formula in zip(sizes, expected, strict=True):
        _held("peak", 100 * (size / formula - 1), allowed=5, unit="%")
    return sweep_figure(
        [*groups],
        {t("checkpointing.predicted"): expected, t("checkpointing.measured"): sizes},
        x_title=t("checkpointing.axis.segment"),
        y_title=t("checkpointing.peak"),
        y_unit="bytes",
        title=t("checkpointing.gpt", root=3, ratio=groups[3][1] / groups[1][1]),
    )


def show_total(totals: Mapping[int, Sequence[Mapping[str, int]]]) -> go.Figure:
    """All memory at the peak with AdamW, without and with checkpoints: few tokens, and many."""
    rows = {}
    for sequences, pair in totals.items():
        name = t("checkpointing.small", tokens=BATCH["block"] * sequences)
        for key, peaks in zip(("none", "each"), pair, strict=True):
            rows[t(f"checkpointing.large.{key}", name=name)] = peaks
    few, many = _saved(totals).values()
    return memory_by_category_figure(rows, title=t("checkpointing.total", few=few, many=many))


def show_random(losses: Sequence[float], errors: Sequence[float]) -> Table:
    """Loss and error of the gradient with dropout: the random state kept, put back, or not."""
    assert losses[0] == losses[1] == losses[2], f"the losses differ: {losses}"
    assert errors[1] == 0 and errors[2] > 0.01, f"errors of the gradient: {errors}"
    names = ("none", "kept", "lost")
    rows = [
        [t(f"checkpointing.random.{name}"), f"{loss:.6f}", f"{error:.1%}"]
        for name, loss, error in zip(names, losses, errors, strict=True)
    ]
    return Table([t(f"checkpointing.{key}") for key in ("random", "loss", "error")], rows)


def show_in_ranks(as_ddp: Sequence[bool], apart: Sequence[float]) -> Together:
    """That DDP with checkpoints is DDP, and one process up to rounding."""
    return Together(
        _held("ddp", sum(not equal for equal in as_ddp), allowed=0),
        _held("one_process", largest(apart), allowed=1e-5),
    )


def show_scores() -> Table:
    """Bytes a layer of GPT-3 in units of s b h, by the quoted formula: scores kept, and not."""
    block = 2048
    kept = sum(quoted_terms(GPT3, micro_batch=1, block=block).values()) / (block * GPT3.n_embd)
    without = kept - 5 * GPT3.n_head * block / GPT3.n_embd
    sizes = [f"{kept:.0f} sbh", f"{without:.0f} sbh", f"{1 - without / kept:.0%}"]
    rows = [[t(f"checkpointing.scores.{n}"), s] for n, s in zip(_SCORES, sizes, strict=True)]
    return Table(["GPT-3", ""], rows)


def show_placements(
    mine: Sequence[int],
    own: Measured,
    first: Mapping[int, Measured],
    groups: Mapping[int, Measured],
    ways: Mapping[str, Measured],
) -> go.Figure:
    """Memory against recomputation: the first layers only, segments of k, torch's, and mine."""
    k_names, k_sizes = t("checkpointing.family.every"), (1, 2, 3, 6, 12)
    m_names, base = t("checkpointing.family.first"), ways["none"][0]

    def forecast(segments: Sequence[int]) -> Point:
        return more_flops(segments), activation_peak(CONFIG, **BATCH, segments=segments)

    def point(measured: Measured) -> Point:
        return 100 * (measured[0] / base - 1), measured[1]

    _held("peak", 100 * (own[1] / forecast(mine)[1] - 1), allowed=5, unit="%")
    lines = {
        m_names: [forecast([1] * m) for m in range(CONFIG.n_layer + 1)],
        k_names: [forecast(every(CONFIG.n_layer, k)) for k in k_sizes],
    }
    dots = {
        m_names: [*map(point, first.values())],
        k_names: [*map(point, groups.values())],
        t("checkpointing.how.early_stop"): [point(ways["early_stop"])],
    }
    more, peak = point(ways["ours"])
    title = t("checkpointing.trade", more=more, less=100 * (1 - peak / ways["none"][1]))
    return memory_vs_recompute_figure(lines, dots, title=title, mine=point(own))


def show_large(peaks: Sequence[Mapping[str, int]]) -> go.Figure:
    """GPT-2 large at its peak, without checkpoints and with one around each layer."""
    for segments, at_peak in zip(([], [1] * GPT2_LARGE.n_layer), peaks, strict=True):
        expected = activation_peak(GPT2_LARGE, **LARGE_BATCH, segments=segments)
        _held("peak", 100 * (at_peak["activations"] / expected - 1), allowed=5, unit="%")
    plain, light = (human_bytes(at_peak["activations"]) for at_peak in peaks)
    names = [t(f"checkpointing.large.{key}", name="GPT-2 large") for key in ("none", "each")]
    title = t("checkpointing.large.title", plain=plain, light=light)
    return memory_by_category_figure(dict(zip(names, peaks, strict=True)), title=title)


def figures_of_d3(
    ways: Mapping[str, Measured], totals: Mapping[int, Sequence[Mapping[str, int]]]
) -> dict[str, Any]:
    """What this lesson measured for claim D3, by the names of its figures."""
    points = _points(ways)
    few, many = _saved(totals).values()
    saved = {name: 100 * (1 - peak / ways["none"][1]) for name, (_, peak) in ways.items()}
    return {
        "activations": saved["ours"],
        "few": few,
        "many": many,
        "reentrant": points["ours"][0],
        "early_stop": points["early_stop"][0],
        "selective": saved["selective"],
    }


_SCORES = ("kept", "recomputed", "saved")


def _points(found: Mapping[str, Measured]) -> dict[str, Point]:
    base = found["none"][0]
    return {name: (100 * (flops / base - 1), peak) for name, (flops, peak) in found.items()}


def _saved(totals: Mapping[int, Sequence[Mapping[str, int]]]) -> dict[int, float]:
    """Percent of all memory that checkpoints save, by the number of sequences."""
    return {
        sequences: 100 * (1 - sum(light.values()) / sum(plain.values()))
        for sequences, (plain, light) in totals.items()
    }


def _held(name: str, difference: float, *, allowed: float, unit: str = "", **words: Any) -> Held:
    what = t(f"checkpointing.held.{name}", **words)
    because = t(f"checkpointing.held.{name}.because")
    return held(what, abs(difference), allowed=allowed, because=because, unit=unit)
