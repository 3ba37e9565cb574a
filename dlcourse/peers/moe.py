"""The same layer of experts computed by others, with the same numbers in it: torch, DeepSpeed.

    compare_layers({"ours": layer} | other_ways(layer), x)

DeepSpeed is optional. Each process has all experts here (`ep_size=1`); lesson 08 puts them on
several ranks.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dlcourse.models.moe import MoE
from dlcourse.peers import deepspeed_engine
from dlcourse.peers.grouped_experts import TorchExperts


class _Expert(nn.Module):
    """One of our experts, as DeepSpeed wants to have it: a module."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


def other_ways(ours: MoE) -> dict[str, Callable[[Tensor], Tensor]]:
    """All that are installed. Every rank must call it: DeepSpeed makes process groups."""
    ways = {"torch": torch_layer(ours), "all": all_experts_for_all(ours)}
    if deepspeed_engine.is_installed():
        ways["deepspeed"] = deepspeed_layer(ours)
    return ways


def torch_layer(ours: MoE) -> Callable[[Tensor], Tensor]:
    """Torch's grouped product in place of our loop over the pieces."""
    layer = copy.deepcopy(ours)
    layer.experts.__class__ = TorchExperts
    return layer


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
    with contextlib.redirect_stdout(None):  # it prints which groups it makes
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
    layers: dict[str, Callable[[Tensor], Tensor]], x_NC: Tensor
) -> dict[str, dict[str, Any]]:
    """The layers on the same tokens; the first is what the others are compared with.

    Returns:
        By name: "apart": largest difference of an output from the first one's. "flops": of a
        forward; torch does not count those of ``grouped_mm``. "calls": of operators.
    """
    found: dict[str, dict[str, Any]] = {}
    first: Tensor | None = None
    for name, layer in layers.items():
        with FlopCounterMode(display=False) as counter, _Calls() as calls, torch.no_grad():
            y_NC = layer(x_NC)
        first = y_NC if first is None else first
        apart = (y_NC - first).abs().max().item()
        found[name] = {"apart": apart, "flops": counter.get_total_flops(), "calls": calls.count}
    return found


class _Calls(TorchDispatchMode):
    """Counts operators; on a GPU each that computes is at least one kernel."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
