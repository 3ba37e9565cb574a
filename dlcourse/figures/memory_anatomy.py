"""Figures of lesson 13: what memory is made of over a step, and paths to less of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.colors import CATEGORIES, INK, PLAIN
from dlcourse.figures.held import Held, Together, held, largest
from dlcourse.figures.plotly_parts import axis_of, figure_of, layout_of, line, rounded, thin_series
from dlcourse.figures.tables import Table
from dlcourse.formulas.activations import activation_peak
from dlcourse.formulas.memory import predict_peak
from dlcourse.formulas.parameters import num_parameters
from dlcourse.formulas.recipe import Recipe
from dlcourse.formulas.sizes import GPT2_LARGE, GPTConfig
from dlcourse.formulas.states import exact_state_bytes, state_bytes
from dlcourse.words.strings import t
from dlcourse.words.units import byte_scale, human_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

Series = Sequence[Sequence[float]]  # rows: time, then bytes of each category
Point = tuple[str, float, float]  # what it is, seconds or another cost, bytes
_COLUMNS = 2
# The pie that claim D5 draws, in percent
PICTURE = {"parameters": 25, "gradients": 25, "optimizer_state": 35, "activations": 15}


def shares(categories: Mapping[str, float]) -> dict[str, float]:
    """Percent of parameters, gradients, optimizer state and activations in their sum."""
    total = sum(categories[name] for name in PICTURE)
    return {name: 100 * categories[name] / total for name in PICTURE}


def distance(categories: Mapping[str, float]) -> float:
    """Percent of the memory that would have to move to another category to give ``PICTURE``."""
    found = shares(categories)
    return sum(abs(found[name] - PICTURE[name]) for name in PICTURE) / 2


def anatomy_figure(
    cases: Mapping[str, Series], *, title: str, lang: str | None = None
) -> go.Figure:
    """Live bytes by category over one step: a panel for each case, all to the same scale.

    Args:
        cases: label -> a record's ``series``, as the recorder gives it.

    Raises:
        ValueError: there are no cases, or one without points.
    """
    if not cases or not all(cases.values()):
        raise ValueError("cases is empty, or has a series without points: record a step first")
    top = max(sum(row[1:]) for series in cases.values() for row in series)
    divisor, unit = byte_scale(top)
    rows = -(-len(cases) // _COLUMNS)
    traces: list[dict] = []
    layout = layout_of(title, height=110 + 180 * rows, xaxis={}, yaxis={}, hovermode="x")
    notes = list(layout.get("annotations", ()))
    for number, (label, series) in enumerate(cases.items()):
        row, column = divmod(number, _COLUMNS)
        suffix = "" if number == 0 else str(number + 1)
        left, low = column * 0.53, 1 - (row + 1) / rows
        last = row == rows - 1 or number + _COLUMNS >= len(cases)
        layout[f"xaxis{suffix}"] = axis_of(
            t("memory_anatomy.axis.step", lang) if last else "",
            domain=[left, left + 0.47],
            anchor=f"y{suffix}",
            range=[0, 100],
        )
        layout[f"yaxis{suffix}"] = axis_of(
            t("figure.axis.memory", lang, unit=unit) if column == 0 else "",
            domain=[low + 0.06 * (row < rows - 1), low + 1 / rows - 0.06],
            anchor=f"x{suffix}",
            range=[0, rounded(1.05 * top / divisor)],
        )
        here = max(sum(r[1:]) for r in series)
        notes.append(
            {
                "text": f"<b>{label}</b>: {human_bytes(here)}",
                "x": left,
                "y": low + 1 / rows - 0.055,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": 13, "color": INK},
            }
        )
        traces += _areas(thin_series(series), number, suffix, divisor, unit, lang)
    layout["annotations"] = notes
    return figure_of(traces, layout)


def _areas(
    series: Series, number: int, suffix: str, divisor: float, unit: str, lang: str | None
) -> list[dict[str, Any]]:
    first, length = series[0][0], max(series[-1][0] - series[0][0], 1)
    x = [rounded(100 * (row[0] - first) / length) for row in series]
    return [
        {
            "type": "scatter",
            "x": x,
            "y": [rounded(row[i + 1] / divisor) for row in series],
            "name": t(f"category.{name}", lang),
            "legendgroup": name,
            "showlegend": number == 0 and name != "communication",
            "mode": "lines",
            "line": {"shape": "hv", "width": 0.5, "color": color},
            "fillcolor": color,
            "stackgroup": f"case{number}",
            "xaxis": f"x{suffix}",
            "yaxis": f"y{suffix}",
            "hovertemplate": f"%{{y:.3~g}} {unit}",
        }
        for i, (name, color) in enumerate(CATEGORIES.items())
    ]


def memory_vs_time_figure(
    everything: Sequence[Point],
    paths: Mapping[str, Sequence[Point]],
    *,
    title: str,
    lang: str | None = None,
) -> go.Figure:
    """Peak memory over the time of a step: every set of techniques, and paths through them.

    Args:
        everything: all sets that were measured; the cost is relative to that of none (1.0).
        paths: such as the best sets and a recommended order; each gets a line.

    Raises:
        ValueError: nothing was measured.
    """
    if not everything:
        raise ValueError("everything holds no point: give at least one set of techniques")
    divisor, unit = byte_scale(max(size for _, _, size in everything))
    marks = line(
        [rounded(cost) for _, cost, _ in everything],
        [rounded(size / divisor) for _, _, size in everything],
        t("memory_anatomy.all_sets", lang),
        INK,
    )
    marks["mode"] = "markers"
    marks["marker"]["symbol"] = "circle-open"
    marks["hovertext"] = [f"{name}: ×{cost:.2f}, {human_bytes(n)}" for name, cost, n in everything]
    marks["hoverinfo"] = "text"
    traces = [marks]
    for order, (name, points) in enumerate(paths.items()):
        trace = line(
            [rounded(cost) for _, cost, _ in points],
            [rounded(size / divisor) for _, _, size in points],
            name,
            (PLAIN, INK)[order % 2],
            order=order,
            markers=True,
        )
        trace["hovertext"] = [f"{what}: ×{c:.2f}, {human_bytes(n)}" for what, c, n in points]
        trace["hoverinfo"] = "text"
        traces.append(trace)
    layout = layout_of(
        title,
        height=400,
        xaxis=axis_of(t("memory_anatomy.axis.time", lang)),
        yaxis=axis_of(t("figure.axis.peak_memory", lang, unit=unit), rangemode="tozero"),
    )
    return figure_of(traces, layout)


# ---------------------------------------------------------------------------- one call a cell

Memory = Mapping[str, Any]  # a record's "memory"
CONFIG = GPTConfig(n_layer=8, n_embd=64, block_size=64)
BATCH: dict[str, Any] = {"micro_batch": 8, "block": 64}
TABLE = ("mixed", "accumulate", "checkpoint", "zero1", "zero3")  # the techniques of D6 and D9
# What the usual table of claim D6 promises to shrink
PROMISED = {
    "parameters": ("zero3", "mixed"),
    "gradients": ("mixed", "accumulate"),
    "optimizer_state": ("mixed", "zero1"),
    "activations": ("checkpoint", "accumulate"),
}


def state_sizes(config: GPTConfig = CONFIG) -> dict[str, int]:
    """Bytes of parameters, gradients and optimizer state with AdamW in float32."""
    return exact_state_bytes(config, Recipe())


def bytes_a_parameter(memory: Memory) -> float:
    """Of parameters, gradients and optimizer state at a step's end."""
    return sum(memory["end"][name] for name in state_sizes()) / num_parameters(CONFIG)


def share_tokens(config: GPTConfig, share: float = PICTURE["activations"]) -> int:
    """Tokens of a micro-batch at which activations are a share of all, in percent."""
    block = config.block_size
    per_token = activation_peak(config, micro_batch=1, block=block) / block
    return round(share / (100 - share) * sum(state_sizes(config).values()) / per_token)


def show_states(memory: Memory) -> Together:
    """That the states are those of the formula to the byte, and activations nearly."""
    sizes, found = state_sizes(), memory["end"]
    off = largest(abs(found[name] - size) for name, size in sizes.items())
    formula = activation_peak(CONFIG, **BATCH)
    apart = 100 * (memory["peaks"]["activations"] / formula - 1)
    return Together(
        _held("states", off, allowed=0), _held("activations", apart, allowed=5, unit="%")
    )


def show_cases(anatomy: Mapping[str, Memory]) -> go.Figure:
    """One step by category over time: optimizers, precisions and batches."""
    cases = {t(f"memory_anatomy.case.{name}"): found["series"] for name, found in anatomy.items()}
    peaks = [found["peak_bytes"] for found in anatomy.values()]
    low, high = human_bytes(min(peaks)), human_bytes(max(peaks))
    return anatomy_figure(cases, title=t("memory_anatomy.over_time", low=low, high=high))


def show_shares(anatomy: Mapping[str, Memory]) -> Table:
    """What each case is made of at its peak, beside the pie of claim D5."""
    found = {name: memory["at_peak"] for name, memory in anatomy.items()}
    return _shares({t(f"memory_anatomy.case.{name}"): sizes for name, sizes in found.items()})


def show_few_tokens(few: Mapping[int, Mapping[str, float]]) -> Table:
    """The same for few tokens in a micro-batch, with accumulation."""
    rows = {t("memory_anatomy.tokens", count=count): sizes for count, sizes in few.items()}
    return _shares(rows)


def nearest_tokens(few: Mapping[int, Mapping[str, float]]) -> int:
    """The number of tokens at which activations come nearest to the pie's share."""
    return min(few, key=lambda n: abs(shares(few[n])["activations"] - PICTURE["activations"]))


def figures_of_d5(
    anatomy: Mapping[str, Memory], few: Mapping[int, Mapping[str, float]]
) -> dict[str, float]:
    """What this lesson measured for claim D5, by the names of its figures."""
    return {
        "nearest": min(map(distance, few.values())),
        "state": shares(few[nearest_tokens(few)])["optimizer_state"],
        "large": shares(anatomy["large"]["at_peak"])["activations"],
        "tokens": share_tokens(GPT2_LARGE),
    }


def show_matrix(plain: Memory, matrix: Mapping[str, Memory]) -> Table:
    """How each technique alone changes the peak of each category, and of all."""
    rows = []
    for name, memory in matrix.items():
        cells = [_change(memory["peaks"][c], plain["peaks"][c]) for c in PICTURE]
        total = _change(memory["peak_bytes"], plain["peak_bytes"])
        rows.append([t(f"memory_anatomy.technique.{name}"), *cells, total])
    header = [t("memory_anatomy.technique"), *(t(f"category.{c}") for c in PICTURE)]
    return Table([*header, t("memory_anatomy.total")], rows, caption=t("memory_anatomy.matrix"))


def figures_of_d6(plain: Memory, matrix: Mapping[str, Memory]) -> dict[str, float]:
    """What this lesson measured for claim D6, by the names of its figures."""

    def left(name: str, category: str) -> float:
        return matrix[name]["peaks"][category] / plain["peaks"][category]

    return {
        "kept": sum(left(name, c) < 0.95 for c, names in PROMISED.items() for name in names),
        "state": left("mixed", "optimizer_state"),
        "activations": left("mixed", "activations"),
    }


def show_same(
    off: Mapping[str, float],
    ours: float,
    theirs: float,
    matrix: Mapping[str, Memory],
    num_ranks: int,
) -> Together:
    """That every technique trains as one process does; that torch and the formula count as we do.

    off: technique -> distance of the parameters, times what the steps moved.
    ours, theirs: bytes at the peak, by the ledger and by torch's MemTracker.
    matrix: technique -> what ``num_ranks`` ranks measured, to hold against the formula.
    """
    batch = {"sequences": BATCH["micro_batch"], "block": BATCH["block"], "world_size": num_ranks}
    by_formula = {n: predict_peak(CONFIG, Recipe.of([n]), **batch) for n in TABLE}
    apart = [sum(by_formula[n].values()) / matrix[n]["peak_bytes"] - 1 for n in TABLE]
    rows = [[t(f"memory_anatomy.technique.{n}"), f"{x:.0e}"] for n, x in off.items()]
    return Together(
        Table([t("memory_anatomy.technique"), t("memory_anatomy.parity")], rows),
        _held("same", largest(off.values()), allowed=1e-5),
        _held("tracker", 100 * (theirs / ours - 1), allowed=1, unit="%"),
        _held("formula", 100 * largest(map(abs, apart)), allowed=4, unit="%"),
    )


def show_published() -> Table:
    """States of 7.5B parameters on each of 64 GPUs, published and by formula.

    Source: Rajbhandari et al., "ZeRO", 2019, figure 1; GB are 10^9 bytes.
    """
    rows = []
    for stage, published in enumerate((120.0, 31.4, 16.6, 1.9)):
        sizes = state_bytes(1, precision="master", world_size=64, stage=stage)
        counted = 7.5 * sum(sizes.values())
        assert abs(counted - published) < 0.06, f"stage {stage}: {counted} GB"
        name = f"ZeRO-{stage}" if stage else t("memory_anatomy.baseline")
        rows.append([name, f"{published:g} GB", f"{counted:.1f} GB"])
    keys = ("technique", "published", "formula")
    return Table([t(f"memory_anatomy.{key}") for key in keys], rows)


def show_analogies(
    plain: Memory,
    matrix: Mapping[str, Memory],
    errors: Mapping[str, float],
    costs: Mapping[str, tuple[float, float]],
) -> Table:
    """What each analogy's technique did to memory, work and exactness.

    costs: technique -> FLOPs and sent bytes, times those without it.
    """
    rows = []
    for name, (flops, sent) in costs.items():
        error = errors[name]
        rows.append(
            [
                t(f"memory_anatomy.technique.{name}"),
                t(f"memory_anatomy.analogy.{name}"),
                _change(matrix[name]["peak_bytes"], plain["peak_bytes"]),
                f"×{flops:.2f}",
                f"×{sent:.1f}",
                t("memory_anatomy.bits") if error == 0 else f"{error:.0e}",
            ]
        )
    exact = largest(errors[name] for name in costs if name != "mixed")
    assert exact < 1e-4 < errors["mixed"], f"parameters apart: {errors}"
    keys = ("technique", "analogy", "total", "flops", "sent", "apart")
    return Table([t(f"memory_anatomy.{key}") for key in keys], rows)


def _shares(found: Mapping[str, Mapping[str, float]]) -> Table:
    rows = [
        [name, *(f"{x:.0f}%" for x in shares(sizes).values()), f"{distance(sizes):.0f}%"]
        for name, sizes in {t("memory_anatomy.picture"): PICTURE, **found}.items()
    ]
    header = [t("memory_anatomy.case"), *(t(f"category.{name}") for name in PICTURE)]
    return Table([*header, t("memory_anatomy.distance")], rows, caption=t("memory_anatomy.shares"))


def _change(now: float, before: float) -> str:
    ratio = 100 * (now / before - 1)
    return "=" if abs(ratio) < 1 else f"{ratio:+.0f}%".replace("-", "−")


def _held(name: str, difference: float, *, allowed: float, unit: str = "") -> Held:
    because = t(f"memory_anatomy.held.{name}.because")
    what = t(f"memory_anatomy.held.{name}")
    return held(what, abs(difference), allowed=allowed, because=because, unit=unit)
