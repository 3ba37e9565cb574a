"""All the memory of a training step by formula, and what the step costs.

    predict_peak(config, Recipe(), sequences=8, block=1024)     # bytes by category

States are exact and activations within 5% of the ledger, all together within 2%, or 4% where
several micro-batches leave their gradients in shards (a GPT of 3 layers; see the tests). What a GPU
has on top is not in it: the allocator rounds each tensor up to 512 bytes and keeps what it cannot
give back in pieces, libraries have workspaces, and torch's optimizers update all tensors at once
there, with buffers as large as the parameters.

Source: the formulas of the other modules, put together.
"""

from __future__ import annotations

from dlcourse.formulas.activations import activation_moments
from dlcourse.formulas.flops import step_flops
from dlcourse.formulas.parameters import num_parameters, parameter_units
from dlcourse.formulas.recipe import Recipe
from dlcourse.formulas.sizes import GPTConfig, check_size
from dlcourse.formulas.states import check_world_size, exact_state_bytes, value_bytes
from dlcourse.formulas.traffic import zero_bytes


def predict_peak(
    config: GPTConfig, recipe: Recipe, *, sequences: int, block: int, world_size: int = 1
) -> dict[str, int]:
    """Bytes by category at the highest moment of a step whose optimizer has its state already.

    Gradients grow in backward while activations shrink. So the highest moment is the loss, one of
    the checkpointed segments, or the optimizer's step, whichever is largest.

    Args:
        sequences: of the whole step in this rank, all micro-batches together.

    Raises:
        ValueError: accumulate does not divide the sequences; a block that the model cannot take,
            or no rank.
    """
    check_size("sequences", sequences)
    check_size("block", block)
    check_world_size(world_size)
    if block > config.block_size:
        raise ValueError(
            f"block={block} does not fit block_size={config.block_size}: give shorter sequences "
            "or a larger block_size"
        )
    states = exact_state_bytes(config, recipe, world_size=world_size)
    units = [value_bytes(recipe.precision) * numbers for numbers, _ in parameter_units(config)]
    outside, block_bytes = units[0], units[1]
    moments = activation_moments(
        config,
        micro_batch=_micro_batch(recipe, sequences),
        block=block,
        precision=recipe.precision,
        segments=_segments(config, recipe),
        early_stop=True,
    )
    # Gradients of an earlier micro-batch; stage 1 keeps the memory for all of them
    all_along = recipe.accumulate > 1 or recipe.stage == 1
    before = ("forward", "loss", "head")  # no gradients of this micro-batch yet
    whole = {**dict.fromkeys(before, 0), "layers": outside, "embedding": sum(units[1:])}
    whole |= {f"segment {i}": outside + sum(units[i + 2 :]) for i in range(len(units) - 1)}
    divided = world_size if recipe.stage >= 2 else 1
    found = []
    for name, activations in moments.items():
        gradients = states["gradients"] if all_along else whole[name] // divided
        gathered = under_way = 0
        if recipe.stage == 3:  # what is outside, the block at work, and the next one
            gathered = outside + block_bytes * (1 if name in before else 2)
        if recipe.stage >= 2 and name not in before:
            under_way = block_bytes  # a block's gradients that are being sent
        found.append(
            states
            | {"gradients": gradients, "activations": activations}
            | {"communication": gathered + under_way}
        )
    largest = _largest_tensor(config, recipe, world_size)
    found.append(states | {"activations": 0, "communication": 0, "other": 2 * 4 * largest})
    return max(found, key=lambda categories: sum(categories.values()))


def step_cost(
    config: GPTConfig, recipe: Recipe, *, sequences: int, block: int, world_size: int = 1
) -> dict[str, float]:
    """What a step costs a rank: "flops", "sent" bytes and "passes" (micro-batches)."""
    batch = dict(micro_batch=_micro_batch(recipe, sequences), block=block)
    flops = step_flops(config, **batch, segments=_segments(config, recipe), early_stop=True)
    sent = zero_bytes(
        value_bytes(recipe.precision) * num_parameters(config),
        world_size=world_size,
        stage=recipe.stage,
        accumulate=recipe.accumulate,
    )
    return {"flops": recipe.accumulate * flops, "sent": sent, "passes": recipe.accumulate}


def _segments(config: GPTConfig, recipe: Recipe) -> list[int]:
    return [1] * config.n_layer if recipe.checkpoint else []


def _micro_batch(recipe: Recipe, sequences: int) -> int:
    """Sequences of one micro-batch."""
    if sequences < 1 or sequences % recipe.accumulate:
        raise ValueError(
            f"accumulate={recipe.accumulate} does not divide {sequences} sequences: give a "
            f"multiple of {recipe.accumulate}"
        )
    return sequences // recipe.accumulate


def _largest_tensor(config: GPTConfig, recipe: Recipe, world_size: int) -> int:
    """Numbers in the largest tensor that the optimizer updates."""
    if recipe.optimizer != "adamw":
        return 0
    if recipe.stage:
        return max(-(-numbers // world_size) for numbers, _ in parameter_units(config))
    return max(config.vocab_size * config.n_embd, 4 * config.n_embd**2)
