"""One job under several strategies, side by side: its losses, its optimizer state, claims A1-A4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.charts import bars_figure
from dlcourse.figures.colors import CATEGORIES
from dlcourse.figures.held import Together, held, largest
from dlcourse.figures.tables import Table
from dlcourse.words.strings import t

if TYPE_CHECKING:
    import plotly.graph_objects as go

ALLOWED = 1e-5  # between losses: float32 sums in another order are about 1e-7 off at each addition

Results = Mapping[tuple[str, str], Mapping[str, Any]]  # (architecture, strategy) -> what was found


def largest_difference(results: Results) -> float:
    """Largest difference of any step's loss from that of the same model trained alone."""
    return largest(
        abs(loss - alone)
        for (architecture, _), result in results.items()
        for loss, alone in zip(
            result["losses"], results[architecture, "alone"]["losses"], strict=True
        )
    )


def show_first_losses(results: Results) -> Together:
    """Loss after the last step, strategies down and architectures across."""
    architectures = list(dict.fromkeys(a for a, _ in results))
    strategies = list(dict.fromkeys(s for _, s in results))
    rows = [
        [t(f"strategy.name.{s}")] + [f"{results[a, s]['losses'][-1]:.6f}" for a in architectures]
        for s in strategies
    ]
    head = [t("strategy.strategy")] + [t(f"strategy.architecture.{a}") for a in architectures]
    what, because = t("strategy.same"), t("strategy.because")
    return Together(
        Table(head, rows, caption=t("strategy.losses")),
        held(what, largest_difference(results), allowed=ALLOWED, because=because),
    )


def show_optimizer_state(of_ranks: Sequence[Results]) -> go.Figure:
    """Bytes of optimizer state in the fullest rank: with DDP, ZeRO-1 and ZeRO-3 of torch."""
    most = _fullest(of_ranks)
    percent = {name: round(100 * size / most["data"]) for name, size in most.items()}
    assert 95 < percent["zero3"] * len(of_ranks) < 105, percent
    return bars_figure(
        [t(f"strategy.name.{name}") for name in most],
        list(most.values()),
        axis=t("strategy.optimizer.axis"),
        title=t("strategy.optimizer.title", zero1=percent["zero1"], zero3=percent["zero3"]),
        unit="bytes",
        colors=[CATEGORIES["optimizer_state"]] * len(most),
    )


def figures_of_a1(results: Results) -> dict[str, float]:
    """For claim A1: how many pairings ran, and how far the losses are from training alone."""
    return {"pairs": len(results), "gap": largest_difference(results)}


def figures_of_a2(sizes: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """For claim A2: parameters of the MoE over the dense model's, in all and for a token."""
    (dense, dense_active), (moe, moe_active) = sizes["dense"], sizes["moe"]
    return {"parameters": moe / dense, "active": moe_active / dense_active}


def figures_of_a3(results: Results) -> dict[str, float]:
    """For claim A3: the largest difference of a loss between DDP and FSDP2."""
    apart = [
        abs(a - b)
        for name in ("dense", "moe")
        for a, b in zip(
            results[name, "data"]["losses"], results[name, "zero3"]["losses"], strict=True
        )
    ]
    return {"same_loss": max(apart)}


def figures_of_a4(of_ranks: Sequence[Results]) -> dict[str, float]:
    """For claim A4: percent of DDP's optimizer state that ZeRO leaves in the fullest rank."""
    most = _fullest(of_ranks)
    return {name: 100 * most[name] / most["data"] for name in ("zero1", "zero3")}


def _fullest(of_ranks: Sequence[Results]) -> dict[str, int]:
    return {
        strategy: max(of_rank["dense", strategy]["optimizer_state"] for of_rank in of_ranks)
        for strategy in ("data", "zero1", "zero3")
    }
