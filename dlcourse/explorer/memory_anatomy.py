"""Lesson 13's figures that stand on the search among techniques: which one first, and a card.

explore(memory_on_card, model=["gpt2-large", "7b"], card_gb=[24, 80], sequences=[1, 4])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dlcourse.figures.held import Together, held
from dlcourse.figures.memory_anatomy import memory_vs_time_figure
from dlcourse.figures.picture import Picture, stacked_bars
from dlcourse.figures.tables import Table
from dlcourse.formulas.memory import predict_peak, step_cost
from dlcourse.formulas.recipe import Recipe
from dlcourse.formulas.sizes import GPT2_LARGE, MODELS
from dlcourse.formulas.states import exact_state_bytes
from dlcourse.plan.fake_ledger import Case
from dlcourse.plan.technique_order import Prices, compare_order, pareto_front, path_of_order
from dlcourse.plan.technique_sets import Plan, plans
from dlcourse.words.strings import t

if TYPE_CHECKING:
    import plotly.graph_objects as go

# By its datasheet (NVIDIA A100): TF32 and bf16 FLOPs, NVLink each way. The 2 ms are assumed.
_A100: dict[str, float] = {"flops": 156e12, "flops16": 312e12, "per_pass": 2e-3}
MACHINES = {
    "fast": Prices(**_A100, bandwidth=300e9),
    "network": Prices(**_A100, bandwidth=25e9 / 8),
    "plain": Prices(**_A100 | {"flops16": 156e12}, bandwidth=300e9),
}
TWO = {"sequences": 2, "block": 1024}
ROWS = ("baseline", "mixed", "accumulate", "checkpoint", "zero3")  # of claim D8's table
# What one device can be short of: tokens of a sequence, ms of a micro-batch's fixed price
ALONE = {"alone": (1024, 2), "short": (256, 2), "slow": (256, 10)}
IN_TURN = ("mixed", "checkpoint", "zero1", "zero3")
_ENDS = (4, 8, 12, 16, 20, 24, 32, 40, 60, 80, 100, 120, 160, 200, 240, 320, 400, 600, 800)
_GB = 1e9


def every_set() -> list[Plan]:
    """All sets of techniques for GPT-2 Large over 4 ranks, by formula."""
    return plans(GPT2_LARGE, sequences=16, block=1024, world_size=4)


def show_search(everything: Sequence[Plan], machine: str = "fast") -> go.Figure:
    """Peak against time: all sets, the cheapest for each limit, and the recommended order."""
    prices = MACHINES[machine]
    base = prices.seconds(everything[0])

    def path(some: Sequence[Plan]) -> list[tuple[str, float, float]]:
        return [(_label(plan), prices.seconds(plan) / base, plan.peak) for plan in some]

    found = compare_order(everything, prices)
    title = t(
        "memory_anatomy.search",
        machine=t(f"memory_anatomy.machine.{machine}"),
        right=sum(one.extra < 1 for one in found),
        all=len(found),
    )
    lines = {
        t("memory_anatomy.best_path"): path(pareto_front(everything, prices)),
        t("memory_anatomy.recommended"): path(path_of_order(everything)),
    }
    return memory_vs_time_figure(path(everything), lines, title=title)


def show_machines(everything: Sequence[Plan]) -> Table:
    """For each machine: how often the order is cheapest, and where it is worst."""
    rows = []
    for name, prices in MACHINES.items():
        found = compare_order(everything, prices)
        bad = max((one for one in found if one.by_order.techniques), key=lambda one: one.extra)
        cells = [_label(bad.best), _label(bad.by_order), f"+{bad.extra:.0f}%"]
        share = f"{_percent_right(everything, prices):.0f}%"
        rows.append([t(f"memory_anatomy.machine.{name}"), share, *cells])
    keys = ("machine", "right", "cheapest", "recommended_first", "extra")
    return Table([t(f"memory_anatomy.{key}") for key in keys], rows)


def show_alone() -> Table:
    """One device: the limit at which the order costs most, for three jobs."""
    rows = []
    for name, (block, milliseconds) in ALONE.items():
        bad = _worst_alone(name)
        cells = [_label(bad.best), _label(bad.by_order), f"+{bad.extra:.1f}%"]
        rows.append([f"8 × {block:,}", f"{milliseconds} ms", *cells])
    keys = ("batch", "per_pass", "cheapest", "recommended_first", "extra")
    return Table([t(f"memory_anatomy.{key}") for key in keys], rows)


def figures_of_d7(everything: Sequence[Plan]) -> dict[str, float]:
    """What this lesson found for claim D7, by the names of its figures."""
    right = {name: _percent_right(everything, prices) for name, prices in MACHINES.items()}
    return right | {name: _worst_alone(name).extra for name in ALONE}


def large_cases() -> list[Case]:
    """GPT-2 Large by the rows of claim D8's table; the last one over 4 devices."""
    recipes = [
        Recipe.of(ROWS[1 : n + 1], **({"accumulate": 2} if n > 1 else {})) for n in range(len(ROWS))
    ]
    return [
        Case(GPT2_LARGE, recipe, **TWO, world_size=4 if recipe.stage else 1) for recipe in recipes
    ]


def large_totals() -> list[float]:
    """GB of each row, by formula."""
    found = [
        predict_peak(GPT2_LARGE, case.recipe, **TWO, world_size=case.world_size)
        for case in large_cases()
    ]
    return [sum(sizes.values()) / _GB for sizes in found]


def show_gpt2(counted: float) -> Together:
    """Claim D8's table beside the formula.

    counted: GB of the first row, by the ledger.
    """
    totals, costs = large_totals(), _large_flops()
    claimed, speeds = (12, 6, 6, 4, 2), (100, 115, 110, 90, 80)
    rows = [
        [
            t(f"memory_anatomy.row.{name}", ranks=4, parts=2),
            f"{claimed[n]} GB",
            f"{totals[n]:.1f} GB",
            f"×{costs[n] / costs[0]:.2f}",
            f"{speeds[n]}%",
        ]
        for n, name in enumerate(ROWS)
    ]
    keys = ("technique", "row.claimed", "formula", "flops", "speed")
    off = 100 * abs(counted / totals[0] - 1)
    because = t("memory_anatomy.held.activations.because")
    return Together(
        Table([t(f"memory_anatomy.{key}") for key in keys], rows),
        held(t("memory_anatomy.held.gpt2"), off, allowed=1, because=because, unit="%"),
    )


def figures_of_d8() -> dict[str, float]:
    """What this lesson found for claim D8, by the names of its figures."""
    costs, names = _large_flops(), ("baseline", "mixed", "accumulate", "checkpoint", "sharded")
    states = sum(exact_state_bytes(GPT2_LARGE, Recipe()).values()) / _GB
    totals = dict(zip(names, large_totals(), strict=True))
    return {"states": states, "again": costs[3] / costs[2], **totals}


def relative_costs(everything: Sequence[Plan]) -> dict[str, tuple[float, float]]:
    """Of one technique alone: FLOPs and sent bytes, times those of none."""
    none = everything[0].cost
    found = {}
    for name in ("accumulate", "mixed", "checkpoint", "zero3"):
        cost = next(plan for plan in everything if plan.techniques == (name,)).cost
        found[name] = cost["flops"] / none["flops"], cost["sent"] / none["sent"]
    return found


def show_fitting(
    memory: float, *, model: Any = GPT2_LARGE, sequences: int, block: int, devices: int
) -> Table:
    """The fastest sets of techniques that fit into so many bytes, at an A100's prices."""
    prices = MACHINES["fast"]
    options = plans(model, sequences=sequences, block=block, world_size=devices)
    fitting = sorted((p for p in options if p.peak <= memory), key=prices.seconds)
    base = prices.seconds(options[0])
    rows = [
        [_label(plan), f"{plan.peak / _GB:.1f} GB", f"×{prices.seconds(plan) / base:.2f}"]
        for plan in fitting[:6]
    ] or [[t("memory_anatomy.nothing_fits"), "", ""]]
    caption = t(
        "memory_anatomy.advice",
        memory=f"{memory / _GB:.0f} GB",
        sequences=sequences,
        ranks=devices,
    )
    keys = ("set", "total", "axis.time")
    return Table([t(f"memory_anatomy.{key}") for key in keys], rows, caption=caption)


def memory_on_card(
    model: str = "7b", card_gb: int = 80, sequences: int = 4, techniques: int = 0
) -> Picture:
    """A step's peak by category against a card's memory: without techniques, and with some.

    Args:
        model: a name of ``MODELS``; 1,024 tokens a sequence, 4 ranks, AdamW.
        card_gb: the card's memory in GB.
        sequences: in each rank.
        techniques: how many are on, in the order of ``IN_TURN``; ZeRO-3 takes ZeRO-1's place.
    """
    rows, totals, held = {}, {}, 0.0
    for count in dict.fromkeys((0, techniques)):
        label = f"+ {t(f'memory_anatomy.set.{IN_TURN[count - 1]}')}" if count else ""
        label = label or t("memory_anatomy.baseline")
        recipe = Recipe.of(IN_TURN[:count])
        batch: dict[str, int] = {"sequences": sequences, "block": 1024, "world_size": 4}
        sizes = predict_peak(MODELS[model], recipe, **batch)
        rows[label] = {name: size / _GB for name, size in sizes.items()}
        held = sum(rows[label].values())
        totals[label] = f"{held:.1f} GB"
    words: dict[str, Any] = {"model": model, "need": f"{held:.1f}", "card": card_gb}
    if held <= card_gb:
        title = t("memory_anatomy.card.fits", **words)
    else:
        title = t("memory_anatomy.card.over", over=f"{held - card_gb:.1f}", **words)
    longest = max(card_gb, *(sum(sizes.values()) for sizes in rows.values()))
    return stacked_bars(
        rows,
        title=title,
        axis="GB",
        limit=next(end for end in _ENDS if end >= longest),
        totals=totals,
        mark=(card_gb, t("memory_anatomy.card", card=card_gb)),
    )


def _label(plan: Plan) -> str:
    names = [t(f"memory_anatomy.set.{name}") for name in plan.techniques]
    return " + ".join(names) or t("memory_anatomy.baseline")


def _percent_right(some: Sequence[Plan], prices: Prices) -> float:
    found = compare_order(some, prices)
    return 100 * sum(one.extra < 1 for one in found) / len(found)


def _worst_alone(name: str) -> Any:
    block, milliseconds = ALONE[name]
    options = plans(GPT2_LARGE, sequences=8, block=block)
    found = compare_order(options, replace(MACHINES["fast"], per_pass=milliseconds / 1000))
    return max((one for one in found if one.by_order.techniques), key=lambda one: one.extra)


def _large_flops() -> list[float]:
    return [step_cost(GPT2_LARGE, case.recipe, **TWO)["flops"] for case in large_cases()]
