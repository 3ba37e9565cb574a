"""The job of ``dlcourse.parallel.expert`` in DeepSpeed's ``MoE`` and in torch's own DTensor.

All take the same one-process layer and give the same numbers; ``layers`` has them by name, and
``step`` is what to time. Shape suffixes as in expert.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import (
    all_to_all_single,
    all_to_all_single_autograd,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_module, distribute_tensor
from torch.func import functional_call

from dlcourse.models.moe import MoE, combine, permute
from dlcourse.parallel.expert import expert_parallel
from dlcourse.parallel.expert_trip import Exchange, torch_exchange
from dlcourse.peers import deepspeed_engine
from dlcourse.peers.grouped_experts import TorchExperts


class DTensorMoE(nn.Module):
    """Experts as DTensors cut along dimension 0, rows sent by torch's functional collectives.

    Args:
        moe: dropless, equal in all ranks; used up.
    """

    def __init__(self, moe: MoE, mesh: DeviceMesh) -> None:
        super().__init__()
        if moe.capacity_factor is not None:
            raise ValueError(
                f"capacity_factor={moe.capacity_factor}: this version drops nothing, give None"
            )
        self.router, self.shared, self.top_k, self.mesh = moe.router, moe.shared, moe.top_k, mesh
        experts = TorchExperts.__new__(TorchExperts)
        experts.__dict__.update(moe.experts.__dict__)
        self.experts = distribute_module(experts, mesh, _cut_by_expert)
        self.num_experts = moe.num_experts

    def forward(self, x: Tensor) -> Tensor:
        x_NC, group, p = x.flatten(0, -2), self.mesh.get_group(), self.mesh.size()
        routing = self.router(x_NC)
        copies_M, counts_E = permute(routing.experts_NK, self.num_experts)
        came_pe = all_to_all_single(counts_E, None, None, group).view(p, -1)
        sent, came = counts_E.view(p, -1).sum(1).tolist(), came_pe.sum(1).tolist()
        x_GC = all_to_all_single_autograd(x_NC[copies_M // self.top_k], came, sent, group)
        slot = torch.arange(came_pe.size(1), device=x.device).repeat(p)
        order_G = slot.repeat_interleave(came_pe.flatten()).argsort(stable=True)
        mine = {name: _local(part) for name, part in self.experts.named_parameters()}
        rows = came_pe.sum(0).tolist()
        y_GC = functional_call(self.experts, mine, (x_GC[order_G], rows))[order_G.argsort()]
        y_MC = all_to_all_single_autograd(y_GC, sent, came, group)
        y_NC = combine(y_MC, copies_M, routing.weights_NK)
        return (y_NC if self.shared is None else y_NC + self.shared(x_NC)).view_as(x)


def _cut_by_expert(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
    for key, whole in [*module.named_parameters(recurse=False)]:
        cut = distribute_tensor(whole.detach(), mesh, [Shard(0)])
        module.register_parameter(key, nn.Parameter(cut, requires_grad=whole.requires_grad))


def _local(parameter: Tensor) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.to_local()


class DeepSpeedMoE(nn.Module):
    """``deepspeed.moe.layer.MoE`` with the experts and the router of ``moe``.

    DeepSpeed sends every expert's rows in a buffer as long as the busiest expert's, so all-to-all
    needs no counts, and sends zeros where a rank has fewer. Two of its defaults are off, which draw
    random numbers: the choice of the second expert, and of what is dropped.

    Args:
        moe: dropless, equal in all ranks, without a shared expert.
        ep_size: ranks that share the experts; all by default.

    Raises:
        ValueError: DeepSpeed is not installed, or ``moe`` drops tokens or has a shared expert.
    """

    def __init__(self, moe: MoE, ep_size: int | None = None) -> None:
        super().__init__()
        if not deepspeed_engine.is_installed():
            raise ValueError("deepspeed is not installed: pip install deepspeed==0.19.8")
        if moe.capacity_factor is not None or moe.shared is not None:
            raise ValueError(
                f"capacity_factor={moe.capacity_factor}, shared={moe.shared}: DeepSpeed drops "
                "other tokens and has another kind of shared expert; give None for both"
            )
        ep_size = dist.get_world_size() if ep_size is None else ep_size
        width, hidden = moe.experts.up.shape[1:]
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            deepspeed_engine.start(moe.experts.up.device.type)
            from deepspeed.moe.layer import MoE as Layer

            expert = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            self.layer = Layer(
                width,
                expert.to(moe.experts.up.dtype),
                num_experts=moe.num_experts,
                ep_size=ep_size,
                k=moe.top_k,
                drop_tokens=False,
                use_rts=False,
                top2_2nd_expert_sampling=False,
            )
            self.layer.set_deepspeed_parallelism()
        inner: Any = self.layer.deepspeed_moe
        first = dist.get_rank() % ep_size * inner.num_local_experts
        with torch.no_grad():
            inner.gate.wg.weight.copy_(moe.router.weight)
            for number, theirs in enumerate(inner.experts.deepspeed_experts, start=first):
                for linear, matrix, bias in (
                    (theirs[0], moe.experts.up, moe.experts.up_bias),
                    (theirs[2], moe.experts.down, moe.experts.down_bias),
                ):
                    linear.weight.copy_(matrix[number].T)
                    linear.bias.copy_(bias[number])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]

    def gradients(self) -> dict[str, Tensor]:
        """Of the router and this rank's experts, in the names and shapes of ``MoE``."""
        inner: Any = self.layer.deepspeed_moe
        mine = inner.experts.deepspeed_experts
        return {
            "router.weight": inner.gate.wg.weight.grad,
            "experts.up": torch.stack([e[0].weight.grad.T for e in mine]),
            "experts.up_bias": torch.stack([e[0].bias.grad for e in mine]),
            "experts.down": torch.stack([e[2].weight.grad.T for e in mine]),
            "experts.down_bias": torch.stack([e[2].bias.grad for e in mine]),
        }


def layers(
    make: Callable[[], MoE], exchanges: dict[str, Exchange] | None = None
) -> dict[str, nn.Module]:
    """One MoE layer over all ranks in each implementation that is here, all with the same weights.

    Args:
        make: the one-process layer, the same in all ranks at every call, without a shared expert.
        exchanges: more ways for our layer's rows, by name: ``{"one-sided": all_to_all}``.
    """
    device = make().router.weight.device.type
    found: dict[str, nn.Module] = {"ours": expert_parallel(make(), exchange=torch_exchange)}
    for name, exchange in (exchanges or {}).items():
        found[f"ours, {name}"] = expert_parallel(make(), exchange=exchange)
    found["torch"] = DTensorMoE(make(), init_device_mesh(device, (dist.get_world_size(),)))
    if deepspeed_engine.is_installed():
        found["DeepSpeed"] = DeepSpeedMoE(make())
    return found


def step(layer: nn.Module, x: Tensor) -> Tensor:
    """Forward and backward of one layer; gradients begin anew. Returns the output."""
    layer.zero_grad()
    y = layer(x)
    y.square().mean().backward()
    return y.detach()


def gradients(layer: nn.Module) -> dict[str, Tensor]:
    """Of the router and this rank's experts, whichever implementation it is."""
    if isinstance(layer, DeepSpeedMoE):
        return layer.gradients()
    grads = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {
        name: grad.to_local() if isinstance(grad, DTensor) else grad
        for name, grad in grads.items()
        if grad is not None
    }
