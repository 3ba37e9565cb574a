"""A recipe: which of the memory techniques are switched on.

    Recipe(precision="master", accumulate=4, checkpoint=True, stage=3)
    Recipe.of({"mixed", "checkpoint"})

``dlcourse.training.memory_anatomy`` trains a model by a recipe; ``memory.py`` predicts all that it
needs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

PRECISIONS = ("float32", "autocast", "master", "bfloat16")
OPTIMIZERS = ("adamw", "momentum", "sgd")
STAGES = (0, 1, 2, 3)  # of ZeRO; 0 is plain data parallelism
# In the order in which they are often recommended (claim D7)
TECHNIQUES: dict[str, dict[str, Any]] = {
    "mixed": {"precision": "master"},
    "accumulate": {"accumulate": 4},
    "checkpoint": {"checkpoint": True},
    "zero1": {"stage": 1},
    "zero3": {"stage": 3},
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    Args:
        precision: one of ``PRECISIONS``: "float32", "autocast" (16-bit products), "master" (16-bit
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
            ("precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
            ("stage", STAGES),
        ):
            if getattr(self, name) not in allowed:
                choices = ", ".join(map(str, allowed))
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown: give one of {choices}"
                )
        if type(self.stage) is not int or type(self.checkpoint) is not bool:
            raise ValueError(
                f"stage={self.stage!r} and checkpoint={self.checkpoint!r}: give a stage as a whole "
                "number, and True or False for checkpoint"
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
        techniques = set(techniques)  # once: a generator has nothing the second time
        unknown = techniques - set(TECHNIQUES)
        if unknown:
            raise ValueError(
                f"techniques holds {', '.join(sorted(unknown))}: give some of "
                f"{', '.join(TECHNIQUES)}"
            )
        chosen = [options for name, options in TECHNIQUES.items() if name in techniques]
        return cls(**{key: value for options in chosen for key, value in options.items()} | others)
