"""Every set of memory techniques, with what it needs and costs by formula.

    for plan in plans(config, sequences=8, block=1024, world_size=4): ...

``technique_order.py`` searches among them; ``fake_ledger.py`` counts what these formulas say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, combinations

from dlcourse.formulas.memory import predict_peak, step_cost
from dlcourse.formulas.recipe import TECHNIQUES, Recipe
from dlcourse.formulas.sizes import GPTConfig


@dataclass(frozen=True)
class Plan:
    """A set of techniques and what it needs.

    Attributes:
        techniques: names of ``TECHNIQUES``, in their order.
        at_peak: bytes by category.
        cost: "flops", "sent", "passes" of a step.
    """

    techniques: tuple[str, ...]
    at_peak: Mapping[str, float]
    cost: Mapping[str, float]

    @property
    def peak(self) -> float:
        """Bytes of all categories together."""
        return sum(self.at_peak.values())

    @property
    def recipe(self) -> Recipe:
        """To train by."""
        return Recipe.of(self.techniques)


def technique_sets() -> list[tuple[str, ...]]:
    """All sets of techniques, small ones first; "zero3" includes "zero1", so never both."""
    every = chain.from_iterable(combinations(TECHNIQUES, n) for n in range(len(TECHNIQUES) + 1))
    return [names for names in every if not {"zero1", "zero3"} <= set(names)]


def plans(
    config: GPTConfig,
    *,
    sequences: int,
    block: int,
    world_size: int = 1,
) -> list[Plan]:
    """Every set of techniques with its predicted memory and cost.

    Raises:
        ValueError: fewer than one rank, or sequences longer than ``block_size``.
    """
    if world_size < 1:
        raise ValueError(f"world_size={world_size}: give the number of devices, from 1 on")
    if block > config.block_size:
        raise ValueError(
            f"block={block} is longer than block_size={config.block_size}: give shorter sequences"
        )
    found = []
    for names in technique_sets():
        if world_size == 1 and {"zero1", "zero3"} & set(names):
            continue  # nothing to divide over
        recipe, batch = Recipe.of(names), dict(sequences=sequences, block=block)
        if sequences % recipe.accumulate:
            continue
        at_peak = predict_peak(config, recipe, **batch, world_size=world_size)
        cost = step_cost(config, recipe, **batch, world_size=world_size)
        found.append(Plan(names, at_peak, cost))
    return found
