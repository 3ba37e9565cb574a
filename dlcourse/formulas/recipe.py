"""A recipe: which of the memory techniques are switched on, and what the states then take.

    Recipe(precision="master", accumulate=4, checkpoint=True, stage=3)
    Recipe.of({"mixed", "checkpoint"})

``techniques.py`` trains a model by a recipe; ``dlcourse.formulas.memory`` predicts all its memory.
Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dlcourse.formulas.mixed_precision import WAYS

# In the order in which they are often recommended (claim D7)
TECHNIQUES: dict[str, dict[str, Any]] = {
    "mixed": {"precision": "master"},
    "accumulate": {"accumulate": 4},
    "checkpoint": {"checkpoint": True},
    "zero1": {"stage": 1},
    "zero3": {"stage": 3},
}
OPTIMIZERS = ("adamw", "momentum", "sgd")
_MOMENTS = {"adamw": 2, "momentum": 1, "sgd": 0}  # numbers of the optimizer for one parameter


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    Args:
        precision: one of ``WAYS``: "float32", "autocast" (16-bit products), "master" (16-bit
            parameters, float32 masters in AdamW), "bfloat16" (all in 16 bits).
        optimizer: one of ``OPTIMIZERS``.
        accumulate: micro-batches of a step.
        checkpoint: store the input of each block only.
        stage: of ZeRO; 0 is without.

    Raises:
        ValueError: a value that is unknown, or two that do not go together.
    """

    precision: str = "float32"
    optimizer: str = "adamw"
    accumulate: int = 1
    checkpoint: bool = False
    stage: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("precision", WAYS),
            ("optimizer", OPTIMIZERS),
            ("stage", (0, 1, 2, 3)),
        ):
            if getattr(self, name) not in allowed:
                choices = ", ".join(map(str, allowed))
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown: give one of {choices}"
                )
        if type(self.accumulate) is not int or self.accumulate < 1:
            raise ValueError(
                f"accumulate={self.accumulate!r}: give the number of micro-batches, from 1 on"
            )
        if self.precision == "master" and self.optimizer != "adamw":
            raise ValueError(
                f"optimizer={self.optimizer!r} keeps no master weights: give optimizer='adamw', "
                "or another precision"
            )

    @classmethod
    def of(cls, techniques: Collection[str], **others: Any) -> Recipe:
        """The recipe with some of ``TECHNIQUES``; of two ZeRO stages the higher one.

        Raises:
            ValueError: a technique that is unknown.
        """
        unknown = set(techniques) - set(TECHNIQUES)
        if unknown:
            raise ValueError(
                f"techniques holds {', '.join(sorted(unknown))}: give some of "
                f"{', '.join(TECHNIQUES)}"
            )
        chosen = [options for name, options in TECHNIQUES.items() if name in techniques]
        return cls(**{key: value for options in chosen for key, value in options.items()} | others)


def value_bytes(recipe: Recipe) -> int:
    """Bytes of a parameter, and of a gradient."""
    return 2 if recipe.precision in ("master", "bfloat16") else 4


def unit_numbers(sizes: dict[str, Any]) -> list[tuple[int, int]]:
    """(numbers, tensors) of what is outside the blocks, and of each block, of our GPT."""
    C, V, T = sizes["n_embd"], sizes["vocab_size"], sizes["block_size"]
    tied = sizes.get("tie_embeddings", False)
    outside = (2 - tied) * V * C + T * C + 2 * C, 5 - tied
    return [outside, *[(12 * C * C + 10 * C, 13)] * sizes["n_layer"]]


def num_parameters(sizes: dict[str, Any]) -> int:
    """What a GPT of these ``GPTConfig`` sizes has to learn."""
    return sum(numbers for numbers, _ in unit_numbers(sizes))


def state_bytes(sizes: dict[str, Any], recipe: Recipe, *, ranks: int = 1) -> dict[str, int]:
    """Bytes of parameters, gradients and optimizer state in a rank, when a step ends: exact.

    Args:
        sizes: as for ``GPTConfig``, all of them.
        ranks: over how many ranks ZeRO divides; each unit is padded to a multiple of it.
    """
    units = unit_numbers(sizes)
    whole = sum(numbers for numbers, _ in units)
    tensors = sum(count for _, count in units)
    if recipe.stage:
        part = sum(-(-numbers // ranks) for numbers, _ in units)
        whole, tensors = part * ranks, len(units)
    else:
        part = whole
    size = value_bytes(recipe)
    if recipe.precision == "master":
        state = 12 * part
    else:  # torch's AdamW has a step counter, 4 bytes, for each tensor
        state = _MOMENTS[recipe.optimizer] * size * part
        state += 4 * tensors * (recipe.optimizer == "adamw")
    # Stage 3 has one number for each unit, which stands for its parameters while they are away
    return {
        "parameters": size * (part + len(units) if recipe.stage == 3 else whole),
        "gradients": size * (part if recipe.stage >= 2 else whole),
        "optimizer_state": state,
    }
