"""One job under several strategies, side by side: its losses, its optimizer state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlcourse.figures.charts import bars_figure
from dlcourse.figures.colors import CATEGORIES
from dlcourse.figures.tables import Table
from dlcourse.words.strings import t


def losses_by_strategy(
    results: Mapping[tuple[str, str], Mapping[str, Any]], lang: str | None = None
) -> Table:
    """Loss after the last step, strategies down and architectures across."""
    architectures = list(dict.fromkeys(a for a, _ in results))
    strategies = list(dict.fromkeys(s for _, s in results))
    rows = [
        [t(f"strategy.name.{s}", lang)]
        + [f"{results[a, s]['losses'][-1]:.6f}" for a in architectures]
        for s in strategies
    ]
    head = [t("strategy.strategy", lang)] + [
        t(f"strategy.architecture.{a}", lang) for a in architectures
    ]
    return Table(head, rows, caption=t("strategy.losses", lang))


def largest_difference(results: Mapping[tuple[str, str], Mapping[str, Any]]) -> float:
    """Largest difference of any step's loss from that of the same model trained alone."""
    return max(
        abs(loss - alone)
        for (architecture, _), result in results.items()
        for loss, alone in zip(
            result["losses"], results[architecture, "alone"]["losses"], strict=True
        )
    )


def optimizer_state_by_strategy(by_strategy: Mapping[str, int], lang: str | None = None) -> Any:
    """Bytes of optimizer state under "data", "zero1" and "zero3" (plotly)."""
    percent = {name: round(100 * n / by_strategy["data"]) for name, n in by_strategy.items()}
    return bars_figure(
        [t(f"strategy.name.{name}", lang) for name in by_strategy],
        list(by_strategy.values()),
        axis=t("strategy.optimizer.axis", lang),
        title=t("strategy.optimizer.title", lang, **percent),
        unit="bytes",
        colors=[CATEGORIES["optimizer_state"]] * len(by_strategy),
        lang=lang,
    )
