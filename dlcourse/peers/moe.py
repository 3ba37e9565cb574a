"""The same layer of experts in DeepSpeed, with the same numbers in it.

    theirs = deepspeed_layer(ours)
    compare_layers(ours, theirs, x)

DeepSpeed is optional. Each process has all experts here (`ep_size=1`); lesson 08 puts them on
several ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.models.moe import MoE
from dlcourse.peers import deepspeed_engine


class _Expert(nn.Module):
    """One of our experts, as DeepSpeed wants to have it: a module."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


@torch.no_grad()
def deepspeed_layer(ours: MoE) -> Callable[[Tensor], Tensor]:
    """DeepSpeed's layer without drops and without its random choice of a second expert.

    Raises:
        ImportError: DeepSpeed is not installed.
    """
    num_experts, width, hidden = ours.experts.up.shape
    deepspeed_engine.start(ours.experts.up.device.type)
    from deepspeed.moe.layer import MoE as DeepSpeedMoE

    layer = DeepSpeedMoE(
        width,
        _Expert(width, hidden),
        num_experts=num_experts,
        k=ours.top_k,
        drop_tokens=False,
        use_rts=False,
        top2_2nd_expert_sampling=False,
    )
    layer.set_deepspeed_parallelism()
    layer.deepspeed_moe.gate.wg.weight.copy_(ours.router.weight)
    for number, expert in enumerate(layer.deepspeed_moe.experts.deepspeed_experts):
        expert.up.weight.copy_(ours.experts.up[number].T)
        expert.up.bias.copy_(ours.experts.up_bias[number])
        expert.down.weight.copy_(ours.experts.down[number].T)
        expert.down.bias.copy_(ours.experts.down_bias[number])
    return lambda x: layer(x)[0]


def all_experts_for_all(ours: MoE) -> Callable[[Tensor], Tensor]:
    """Torch alone, without a router's gain: every expert computes every token, most weigh zero."""

    def forward(x_NC: Tensor) -> Tensor:
        routing = ours.router(x_NC)
        weights_NE = torch.zeros_like(routing.logits_NE)
        weights_NE = weights_NE.scatter(1, routing.experts_NK, routing.weights_NK)
        said_ENC = torch.stack([ours.experts.one(x_NC, e) for e in range(ours.num_experts)])
        return torch.einsum("ne,enc->nc", weights_NE, said_ENC)

    return forward


def compare_layers(
    layers: dict[str, Callable[[Tensor], Tensor]], x_NC: Tensor, *, turns: int = 5
) -> dict[str, dict[str, Any]]:
    """The layers in turns on the same tokens; the first is what the others are compared with.

    Returns:
        By name: "apart": largest difference of an output from the first one's. "seconds": of the
        fastest forward and backward. "flops": of a forward.
    """
    from torch.utils.flop_counter import FlopCounterMode

    found: dict[str, dict[str, Any]] = {}
    first: Tensor | None = None
    for name, layer in layers.items():
        with FlopCounterMode(display=False) as counter:
            y_NC = layer(x_NC).detach()
        first = y_NC if first is None else first
        apart = (y_NC - first).abs().max().item()
        found[name] = {"apart": apart, "flops": counter.get_total_flops(), "seconds": float("inf")}
    for _ in range(turns):
        for name, layer in layers.items():
            start = time.perf_counter()
            layer(x_NC).square().sum().backward()
            seconds = time.perf_counter() - start
            found[name]["seconds"] = min(found[name]["seconds"], seconds)
    return found
