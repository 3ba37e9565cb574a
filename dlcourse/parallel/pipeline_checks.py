"""What of a GPT cannot be dealt out to stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dlcourse.models.gpt import GPT
from dlcourse.parallel.known_code import check_known


def check_stages(model: GPT, layers: Sequence[range]) -> None:
    """Refuse a model that stages of these layers would not compute as it is: ValueError.

    A stage is built of the model's parts, so a forward of its own or a hook would be lost; and
    what two stages share, each would train for itself. A tied head is the pipeline's to join.
    """
    check_known(model, GPT, "", "stages take it apart")
    if len(model.blocks) != model.config.n_layer:
        raise ValueError(
            f"model.blocks has {len(model.blocks)} entries, n_layer is {model.config.n_layer}: "
            "stages deal out single layers, so checkpoint each by itself, [1] * n_layer"
        )
    owner: dict[nn.Parameter, tuple[int, str]] = {}
    for stage, name, parameter in _placed(model, layers):
        first, known = owner.setdefault(parameter, (stage, name))
        if first != stage and {name, known} != {"token_embedding.weight", "head.weight"}:
            raise ValueError(
                f"{name} is used in stages {first} and {stage} too, and each would train a copy: "
                "give every layer a matrix of its own"
            )


def check_grad_enabled() -> None:
    """Refuse a step that would leave no gradient: RuntimeError."""
    if not torch.is_grad_enabled():
        raise RuntimeError("step() goes back through the layers: call it outside no_grad()")


def _placed(model: GPT, layers: Sequence[range]) -> list[tuple[int, str, nn.Parameter]]:
    """Each parameter with the number of its stage and its name; one that is shared comes again."""
    last = len(layers) - 1
    parts = {"token_embedding": 0, "position_embedding": 0, "norm": last, "head": last}
    parts |= {f"blocks.{i}": stage for stage, numbers in enumerate(layers) for i in numbers}
    return [
        (stage, f"{part}.{name}", parameter)
        for part, stage in parts.items()
        for name, parameter in model.get_submodule(part).named_parameters()
    ]
