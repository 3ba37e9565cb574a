"""Offload in a real library: FSDP2 with ``CPUOffloadPolicy``.

Shards of parameters, gradients and optimizer state live on the CPU, which also takes Adam's
step; a block's parameters come to the device while it computes.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.optim import AdamW

from dlcourse.models.gpt import GPT


def offload_with_fsdp2(
    model: GPT, *, offload: bool = True, lr: float = 1e-3
) -> tuple[nn.Module, AdamW]:
    """Each block is a unit, the rest of the model another one.

    Args:
        model: on its device; with ``offload`` its shards go to the CPU.
    """
    device = next(model.parameters()).device.type
    # Pinned memory is what a GPU copies from by itself; without a GPU nobody can pin any
    policy = CPUOffloadPolicy(pin_memory=device == "cuda") if offload else OffloadPolicy()
    assert dist.group.WORLD is not None
    mesh = DeviceMesh.from_group(dist.group.WORLD, device)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, offload_policy=policy)
    fully_shard(model, mesh=mesh, offload_policy=policy)
    return model, AdamW(model.parameters(), lr=lr)
