"""In which order to switch techniques on: a search, instead of a rule.

Each set of techniques has a peak and a cost. For a limit, the best set is the cheapest one below
it. As the limit falls the best set changes: that is the order that the measurements recommend. A
fixed order ("mixed precision, then accumulation, ...") is one path through the same sets.

What is cheap depends on the machine: FLOPs, bytes on the link and passes over the model have a
price each. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlcourse.formulas.memory import Plan
from dlcourse.formulas.recipe import TECHNIQUES

RECOMMENDED = tuple(TECHNIQUES)


@dataclass(frozen=True, kw_only=True)
class Prices:
    """A machine: how much of each cost it does in a second.

    Args:
        flops: in float32 (TF32 counts as such).
        flops16: in 16 bits.
        bandwidth: bytes that a rank sends. Sending is counted as never hidden.
        per_pass: seconds that a forward and backward take on top, however small they are.

    Raises:
        ValueError: a rate that is not above 0.
    """

    flops: float
    flops16: float
    bandwidth: float
    per_pass: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flops", "flops16", "bandwidth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a rate above 0")

    def seconds(self, plan: Plan) -> float:
        """A step's time in this simple model: computing, sending, starting passes."""
        rate = self.flops if plan.recipe.precision == "float32" else self.flops16
        sending = plan.cost["sent"] / self.bandwidth
        return plan.cost["flops"] / rate + sending + plan.cost["passes"] * self.per_pass


def cheapest(plans: Sequence[Plan], limit: float, prices: Prices) -> Plan | None:
    """The plan that takes least time of those within ``limit`` bytes; of equals the simplest."""
    fitting = [plan for plan in plans if plan.peak <= limit]
    return min(fitting, key=lambda p: (prices.seconds(p), len(p.techniques)), default=None)


def stops(plans: Sequence[Plan], order: Sequence[str] | None = None) -> list[Plan]:
    """The plans that a fixed order comes to: nothing, its first technique, its first two, ...

    Args:
        order: ``RECOMMENDED`` by default, as far as there are plans with its techniques.

    Raises:
        ValueError: the order has a technique of which there is no plan.
    """
    by_set = {frozenset(plan.techniques): plan for plan in plans}
    if order is None:
        there = {name for plan in plans for name in plan.techniques}
        order = [name for name in RECOMMENDED if name in there]
    found, on = [], frozenset()
    for technique in (None, *order):
        if technique is not None:
            on |= {technique}
        if {"zero1", "zero3"} <= on:  # stage 3 takes the place of stage 1
            on -= {"zero1"}
        if on not in by_set:
            raise ValueError(
                f"order={list(order)}: no plan has {', '.join(sorted(on))}; give an order of "
                "techniques that the plans are made of"
            )
        found.append(by_set[on])
    return found


def first_that_fits(
    plans: Sequence[Plan], limit: float, order: Sequence[str] | None = None
) -> Plan | None:
    """Switch on one technique after the other, in this order, and stop as soon as it fits."""
    return next((plan for plan in stops(plans, order) if plan.peak <= limit), None)


def front(plans: Sequence[Plan], prices: Prices) -> list[Plan]:
    """The plans that are best for some limit: from the cheapest to the smallest."""
    found: list[Plan] = []
    ranked = sorted(plans, key=lambda p: (prices.seconds(p), p.peak, len(p.techniques)))
    for plan in ranked:
        if not found or plan.peak < found[-1].peak:
            found.append(plan)
    return found


@dataclass(frozen=True)
class Found:
    """For one limit: the cheapest set, and the one that a fixed order stops at.

    Attributes:
        extra: percent of time that the order costs more than the cheapest.
    """

    limit: float
    best: Plan
    by_order: Plan
    extra: float


def compare_order(
    plans: Sequence[Plan], prices: Prices, order: Sequence[str] | None = None
) -> list[Found]:
    """Every limit at which an answer can change, and to which the order has an answer."""
    found = []
    for limit in limits(plans):
        best, by_order = cheapest(plans, limit, prices), first_that_fits(plans, limit, order)
        if best is not None and by_order is not None:
            extra = 100 * (prices.seconds(by_order) / prices.seconds(best) - 1)
            found.append(Found(limit, best, by_order, extra))
    return found


def limits(plans: Sequence[Plan]) -> list[float]:
    """Every limit at which an answer can change: the peaks, from the largest on."""
    return sorted({plan.peak for plan in plans}, reverse=True)
