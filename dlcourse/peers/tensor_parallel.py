"""The job of ``dlcourse.parallel.tensor`` in torch's own DTensor."""

from __future__ import annotations

import importlib.util

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from dlcourse.models.gpt import GPT
from dlcourse.parallel.shards import check_tensor_parallel


def tensor_parallel(
    gpt: GPT, mesh: DeviceMesh | None = None, *, prepare_input: bool = True
) -> nn.Module:
    """Cut the blocks of ``gpt`` in place, as ``dlcourse.parallel.tensor.parallel_blocks`` does.

    Args:
        mesh: one dimension; all ranks by default.
        prepare_input: make attention's input one replicated DTensor, before q, k and v. Without
            it, each of the three sums its own gradient of that input: 6 all-reduces for each
            layer in place of 4.

    Raises:
        ValueError: heads or width do not divide by the ranks.
    """
    if mesh is None:
        device = next(gpt.parameters()).device.type
        mesh = init_device_mesh(device, (dist.get_world_size(),))
    check_tensor_parallel(n_head=gpt.config.n_head, n_embd=gpt.config.n_embd, size=mesh.size())
    plan = {
        "attention.q": ColwiseParallel(),
        "attention.k": ColwiseParallel(),
        "attention.v": ColwiseParallel(),
        "attention.proj": RowwiseParallel(),
        "mlp.up": ColwiseParallel(),
        "mlp.down": RowwiseParallel(),
    }
    if prepare_input:
        plan["attention"] = PrepareModuleInput(
            input_layouts=Replicate(), desired_input_layouts=Replicate()
        )
    for block in gpt.blocks:
        block.attention.n_head //= mesh.size()
        parallelize_module(block, mesh, plan)
    return gpt


def installed() -> dict[str, bool]:
    """Other libraries with tensor parallelism, and whether this machine has them."""
    return {name: importlib.util.find_spec(name) is not None for name in ("megatron",)}
