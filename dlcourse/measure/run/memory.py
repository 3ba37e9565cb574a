"""Memory of one cell: live tensor storages by category, by rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlcourse.measure.categories import CATEGORIES
from dlcourse.measure.figure_hook import draw
from dlcourse.measure.run.clocks import Clocks


@dataclass(frozen=True)
class Memory:
    """Live tensor storages by category.

    `.data()`:
        {"categories": ["parameters", "gradients", "optimizer_state", "activations",
                        "communication", "other"],
         "ranks": [{"rank": int,
                    "peak_bytes": int,             # largest total at one moment
                    "at_peak": {category: bytes},  # what it consisted of; sums to peak_bytes
                    "peaks": {category: bytes},    # each category's own largest value
                    "end": {category: bytes},      # when the cell ended
                    "pss_bytes": int,              # the whole process, shared pages divided
                    "series": [[t_s, parameters, gradients, optimizer_state, activations,
                                communication, other], ...]}, ...]}
    """

    ranks: list[dict[str, Any]]

    def data(self) -> dict[str, Any]:
        """See the class docstring."""
        return {"categories": list(CATEGORIES), "ranks": self.ranks}

    @property
    def peak_bytes(self) -> int:
        """The largest peak over the ranks, in bytes."""
        return max((r["peak_bytes"] for r in self.ranks), default=0)

    def at_peak(self, category: str) -> list[int]:
        """Bytes of a category at the moment of each rank's own peak, one number a rank."""
        _check_category(category)
        return [r["at_peak"][category] for r in self.ranks]

    def peaks(self, category: str) -> list[int]:
        """The category's own largest bytes, one number a rank."""
        _check_category(category)
        return [r["peaks"][category] for r in self.ranks]

    def figure(self, lang: str | None = None) -> Any:
        """Stacked bars of the peak by category and rank (plotly)."""
        return draw("memory", self.data(), lang)

    def over_time(self, lang: str | None = None) -> Any:
        """Stacked areas over time (plotly)."""
        return draw("memory_over_time", self.data(), lang)


def memory_of(records: Sequence[dict[str, Any]], clocks: Clocks) -> Memory:
    """The memory of all ranks."""
    ranks = []
    for record in records:
        rank, m = record["rank"], record["memory"]
        ranks.append(
            {
                "rank": rank,
                "peak_bytes": m["peak_bytes"],
                "at_peak": m["at_peak"],
                "peaks": m["peaks"],
                "end": m["end"],
                "pss_bytes": record["pss_bytes"],
                "series": [[clocks.seconds(rank, p[0]), *p[1:]] for p in m["series"]],
            }
        )
    return Memory(ranks)


def _check_category(category: str) -> None:
    if category not in CATEGORIES:
        raise ValueError(f"category={category!r} is not one of {', '.join(CATEGORIES)}; use one.")
