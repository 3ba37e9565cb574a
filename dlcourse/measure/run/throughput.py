"""Speed of one cell: step time, tokens and floating-point operations a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from dlcourse.measure.figure_hook import draw


@dataclass(frozen=True)
class Throughput:
    """Step time and tokens per second, from `mark_step`.

    `.data()`:
        {"steps": int,                       # steps that every rank finished
         "step_s": float|None,               # median over steps of the slowest rank's time
         "tokens_per_s": float|None,         # tokens of all ranks in a step / its time, median
         "flops_per_s": float|None,          # all ranks; flops in the cell / time in its steps
         "flops": int,                       # all ranks, whole cell
         "wall_s": float,
         "ranks": [{"rank": int, "step_s": [float, ...], "tokens": [int, ...],
                    "loss": [float|None, ...], "flops": int}, ...]}

    The first step (allocation, warm-up) is left out of the medians where there are three or
    more. `step_s` is None where the cell never called `mark_step`.
    """

    steps: int
    step_s: float | None
    tokens_per_s: float | None
    flops_per_s: float | None
    flops: int
    wall_s: float
    ranks: list[dict[str, Any]]

    def data(self) -> dict[str, Any]:
        """See the class docstring."""
        return {
            "steps": self.steps,
            "step_s": self.step_s,
            "tokens_per_s": self.tokens_per_s,
            "flops_per_s": self.flops_per_s,
            "flops": self.flops,
            "wall_s": self.wall_s,
            "ranks": self.ranks,
        }

    def figure(self, lang: str | None = None) -> Any:
        """Step time over steps, by rank (plotly)."""
        return draw("throughput", self.data(), lang)


def throughput_of(records: Sequence[dict[str, Any]]) -> Throughput:
    """The throughput of all ranks together."""
    ranks = [
        {
            "rank": r["rank"],
            "step_s": [(s["end_ns"] - s["start_ns"]) / 1e9 for s in r["steps"]],
            "tokens": [s["tokens"] for s in r["steps"]],
            "loss": [s["loss"] for s in r["steps"]],
            "flops": r["flops"],
        }
        for r in records
    ]
    marked = [r for r in ranks if r["step_s"]]
    n = min((len(r["step_s"]) for r in marked), default=0)
    slowest = [max(r["step_s"][i] for r in marked) for i in range(n)]
    tokens = [sum(r["tokens"][i] for r in marked) for i in range(n)]
    warm = slice(1 if n >= 3 else 0, n)
    rates = [t / s for t, s in zip(tokens[warm], slowest[warm], strict=True) if s > 0 and t]
    flops = sum(r["flops"] for r in ranks)
    in_steps = sum(slowest)
    return Throughput(
        steps=n,
        step_s=median(slowest[warm]) if n else None,
        tokens_per_s=median(rates) if rates else None,
        flops_per_s=flops / in_steps if in_steps and flops else None,
        flops=flops,
        wall_s=max((r["wall_s"] for r in records), default=0.0),
        ranks=ranks,
    )
