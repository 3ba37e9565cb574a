"""All the memory of a training step by formula, and what to switch on so that it fits.

    predict_peak(sizes, Recipe(), sequences=8, block=1024)     # bytes by category
    for plan in plans(sizes, sequences=8, block=1024, ranks=4): ...

States are exact and activations within 5% of the ledger, all together within 10% (see the tests).
What a GPU has on top is not in it: the allocator rounds each tensor up to 512 bytes and keeps what
it cannot give back in pieces, libraries have workspaces, and torch's optimizers update all tensors
at once there, with buffers as large as the parameters.

Needs no torch. Source: the formulas of ``activations.py``, ``mixed_bytes.py``, ``zero_plan.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from dlcourse.formulas.activations import FLOAT32, Shape, activation_moments, step_flops
from dlcourse.formulas.mixed_precision import activation_bytes, checkpointed_moments
from dlcourse.formulas.recipe import (
    TECHNIQUES,
    Recipe,
    num_parameters,
    state_bytes,
    unit_numbers,
    value_bytes,
)
from dlcourse.formulas.zero import bytes_sent

Sizes = Mapping[str, Any]
# As published: one matrix for embedding and output (Radford et al., 2019)
GPT2_LARGE = dict(
    n_layer=36, n_head=20, n_embd=1280, vocab_size=50257, block_size=1024, tie_embeddings=True
)

# Claim D5, in percent
PICTURE = {"parameters": 25, "gradients": 25, "optimizer_state": 35, "activations": 15}


def shares(sizes: Mapping[str, float]) -> dict[str, float]:
    """Percent of parameters, gradients, optimizer state and activations in their sum."""
    total = sum(sizes[name] for name in PICTURE)
    return {name: 100 * sizes[name] / total for name in PICTURE}


def distance(sizes: Mapping[str, float]) -> float:
    """Percent of the memory that would have to move to another category to give ``PICTURE``."""
    found = shares(sizes)
    return sum(abs(found[name] - PICTURE[name]) for name in PICTURE) / 2


def activations_by_moment(
    sizes: Sizes, recipe: Recipe, *, sequences: int, block: int
) -> dict[str, int]:
    """Bytes of activations at the moments of a micro-batch, see ``activation_moments``.

    Args:
        sequences: of the whole step in this rank, all micro-batches together.

    Raises:
        ValueError: accumulate does not divide the sequences.
    """
    shape = _shape(sizes, recipe, sequences, block)
    if recipe.precision == "autocast":
        if recipe.checkpoint:
            return checkpointed_moments(sizes, tokens=shape.tokens)
        return {"loss": activation_bytes(sizes, tokens=shape.tokens, way="autocast")}
    segments = [1] * shape.n_layer if recipe.checkpoint else []
    moments = activation_moments(shape, segments, early_stop=True)
    if value_bytes(recipe) == FLOAT32:
        return moments
    # Half of everything, but for attention's numbers for its rows of scores: float32 as ever
    rows = 2 * shape.tokens * shape.n_head
    layers = dict.fromkeys(moments, 0 if recipe.checkpoint else shape.n_layer)
    layers |= {name: 1 for name in moments if name.startswith("segment")} | {"embedding": 0}
    return {name: size // 2 + layers[name] * rows for name, size in moments.items()}


def activation_peak(sizes: Sizes, recipe: Recipe, *, sequences: int, block: int) -> int:
    """The largest of them."""
    return max(activations_by_moment(sizes, recipe, sequences=sequences, block=block).values())


def predict_peak(
    sizes: Sizes, recipe: Recipe, *, sequences: int, block: int, ranks: int = 1
) -> dict[str, int]:
    """Bytes by category at the highest moment of a step whose optimizer has its state already.

    Gradients grow in backward while activations shrink. So the highest moment is the loss, one of
    the checkpointed segments, or the optimizer's step, whichever is largest.
    """
    states = state_bytes(sizes, recipe, ranks=ranks)
    units = [value_bytes(recipe) * numbers for numbers, _ in unit_numbers(sizes)]
    outside, block_bytes = units[0], units[1]
    moments = activations_by_moment(sizes, recipe, sequences=sequences, block=block)
    # Gradients of an earlier micro-batch; stage 1 keeps the memory for all of them
    all_along = recipe.accumulate > 1 or recipe.stage == 1
    before = ("forward", "loss", "head")  # no gradients of this micro-batch yet
    whole = {**dict.fromkeys(before, 0), "layers": outside, "embedding": sum(units[1:])}
    whole |= {f"segment {i}": outside + sum(units[i + 2 :]) for i in range(len(units) - 1)}
    divided = ranks if recipe.stage >= 2 else 1
    found = []
    for name, activations in moments.items():
        gradients = states["gradients"] if all_along else whole[name] // divided
        gathered = under_way = 0
        if recipe.stage == 3:  # what is outside, the block at work, and the next one
            gathered = outside + block_bytes * (1 if name in before else 2)
        if recipe.stage >= 2 and name not in before:
            # A block's gradients that are being sent, and those that come on top of older ones
            under_way = block_bytes * (1 if recipe.accumulate == 1 else 2)
        found.append(
            states
            | {"gradients": gradients, "activations": activations}
            | {"communication": gathered + under_way}
        )
    largest = _largest_tensor(sizes, recipe, ranks)
    found.append(states | {"activations": 0, "communication": 0, "other": 2 * FLOAT32 * largest})
    return max(found, key=lambda sizes: sum(sizes.values()))


def step_cost(
    sizes: Sizes, recipe: Recipe, *, sequences: int, block: int, ranks: int = 1
) -> dict[str, float]:
    """What a step costs a rank: "flops", "sent" bytes and "passes" (micro-batches)."""
    shape = _shape(sizes, recipe, sequences, block)
    segments = [1] * shape.n_layer if recipe.checkpoint else []
    size = value_bytes(recipe) * num_parameters(sizes)
    sent = bytes_sent(size, world_size=ranks, stage=recipe.stage)
    if recipe.stage == 2:  # gradients for each micro-batch, parameters once
        sent *= (recipe.accumulate + 1) / 2
    elif recipe.stage == 3:  # all of it for each
        sent *= recipe.accumulate
    flops = recipe.accumulate * step_flops(shape, segments, early_stop=True)
    return {"flops": flops, "sent": sent, "passes": recipe.accumulate}


@dataclass(frozen=True)
class Plan:
    """A set of techniques and what it needs.

    Attributes:
        techniques: names of ``TECHNIQUES``, in their order.
        at_peak: bytes by category.
        cost: "flops", "sent", "passes" of a step.
        sequences: in a rank and step.
    """

    techniques: tuple[str, ...]
    at_peak: Mapping[str, float]
    cost: Mapping[str, float]
    sequences: int = 1

    @property
    def peak(self) -> float:
        """Bytes of all categories together."""
        return sum(self.at_peak.values())

    @property
    def recipe(self) -> Recipe:
        """To train by."""
        return Recipe.of(self.techniques)


def combinations_of(techniques: Iterable[str] = tuple(TECHNIQUES)) -> list[tuple[str, ...]]:
    """All sets of techniques, small ones first; "zero3" includes "zero1", so never both."""
    names = [name for name in TECHNIQUES if name in set(techniques)]
    every = (set_ for size in range(len(names) + 1) for set_ in combinations(names, size))
    return [set_ for set_ in every if not {"zero1", "zero3"} <= set(set_)]


def plans(
    sizes: Sizes,
    *,
    sequences: int,
    block: int,
    ranks: int = 1,
    techniques: Iterable[str] = tuple(TECHNIQUES),
) -> list[Plan]:
    """Every set of techniques with its predicted memory and cost.

    Raises:
        ValueError: fewer than one rank, or sequences longer than ``block_size``.
    """
    if ranks < 1:
        raise ValueError(f"ranks={ranks}: give the number of devices, from 1 on")
    if block > sizes["block_size"]:
        raise ValueError(
            f"block={block} is longer than block_size={sizes['block_size']}: give shorter sequences"
        )
    found = []
    for names in combinations_of(techniques):
        if ranks == 1 and {"zero1", "zero3"} & set(names):
            continue  # nothing to divide over
        recipe, batch = Recipe.of(names), dict(sequences=sequences, block=block)
        if sequences % recipe.accumulate:
            continue
        at_peak = predict_peak(sizes, recipe, **batch, ranks=ranks)
        cost = step_cost(sizes, recipe, **batch, ranks=ranks)
        found.append(Plan(names, at_peak, cost, sequences))
    return found


def largest_batch(
    sizes: Sizes, recipe: Recipe, *, memory: float, block: int, ranks: int = 1
) -> int:
    """How many sequences a micro-batch may have so that the step stays within ``memory`` bytes.

    Returns:
        0 where not even one fits.
    """

    def fits(sequences: int) -> bool:
        batch = dict(sequences=sequences * recipe.accumulate, block=block)
        return sum(predict_peak(sizes, recipe, **batch, ranks=ranks).values()) <= memory

    low, high = 0, 1
    while high < 2**20 and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _shape(sizes: Sizes, recipe: Recipe, sequences: int, block: int) -> Shape:
    """Of one micro-batch."""
    if sequences < 1 or sequences % recipe.accumulate:
        raise ValueError(
            f"accumulate={recipe.accumulate} does not divide {sequences} sequences: give a "
            f"multiple of {recipe.accumulate}"
        )
    names = ("n_layer", "n_head", "n_embd", "vocab_size")
    shape = Shape(**{name: sizes[name] for name in names}, sequences=sequences, block=block)
    return replace(shape, sequences=sequences // recipe.accumulate)


def _largest_tensor(sizes: Sizes, recipe: Recipe, ranks: int) -> int:
    """Numbers in the largest tensor that the optimizer updates."""
    if recipe.optimizer != "adamw":
        return 0
    if recipe.stage:
        return max(-(-numbers // ranks) for numbers, _ in unit_numbers(sizes))
    return max(sizes["vocab_size"] * sizes["n_embd"], 4 * sizes["n_embd"] ** 2)
