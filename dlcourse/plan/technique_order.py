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

from dlcourse.formulas.recipe import TECHNIQUES
from dlcourse.plan.technique_sets import Plan

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


def path_of_order(plans: Sequence[Plan]) -> list[Plan]:
    """The plans that the recommended order comes to: no technique, its first, its first two ...

    With "mixed", "zero1", "zero3": {}, {mixed}, {mixed, zero1}, {mixed, zero3}. Techniques that no
    plan has are left out.

    Raises:
        ValueError: a set on the way of which there is no plan.
    """
    plan_of = {frozenset(plan.techniques): plan for plan in plans}
    available = {name for plan in plans for name in plan.techniques}
    order = [name for name in RECOMMENDED if name in available]
    path = []
    for count in range(len(order) + 1):
        switched_on = frozenset(order[:count])
        if {"zero1", "zero3"} <= switched_on:  # stage 3 takes the place of stage 1
            switched_on -= {"zero1"}
        if switched_on not in plan_of:
            raise ValueError(
                f"no plan has {', '.join(sorted(switched_on))}, to which the order comes: give "
                "plans of all sets of their techniques"
            )
        path.append(plan_of[switched_on])
    return path


def first_that_fits(plans: Sequence[Plan], limit: float) -> Plan | None:
    """Switch on one technique after the other, as recommended, and stop as soon as it fits."""
    return next((plan for plan in path_of_order(plans) if plan.peak <= limit), None)


def pareto_front(plans: Sequence[Plan], prices: Prices) -> list[Plan]:
    """The plans that are best for some limit: from the cheapest to the smallest.

    A plan is in it if nothing that is as cheap is smaller: sorted by time, each that has a lower
    peak than all before.
    """
    front: list[Plan] = []
    for plan in sorted(plans, key=lambda p: (prices.seconds(p), p.peak, len(p.techniques))):
        if not front or plan.peak < front[-1].peak:
            front.append(plan)
    return front


@dataclass(frozen=True)
class OrderAtLimit:
    """For one limit: the cheapest set, and the one that the recommended order stops at.

    Attributes:
        limit: bytes.
        extra: percent of time that the order costs more than the cheapest.
    """

    limit: float
    best: Plan
    by_order: Plan
    extra: float


def compare_order(plans: Sequence[Plan], prices: Prices) -> list[OrderAtLimit]:
    """At each limit at which an answer can change, and to which the order has an answer.

    These limits are the peaks of the plans, from the largest on.
    """
    found = []
    for limit in sorted({plan.peak for plan in plans}, reverse=True):
        best, by_order = cheapest(plans, limit, prices), first_that_fits(plans, limit)
        if best is not None and by_order is not None:
            extra = 100 * (prices.seconds(by_order) / prices.seconds(best) - 1)
            found.append(OrderAtLimit(limit, best, by_order, extra))
    return found
