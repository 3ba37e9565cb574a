"""The job of ``dlcourse.parallel.tensor`` in torch's own DTensor and in megatron-core's layers."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from dlcourse.models.gpt import GPT
from dlcourse.parallel.divisibility import check_tensor_parallel


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
    blocks: Any = gpt.blocks
    for block in blocks:
        block.attention.n_head //= mesh.size()
        parallelize_module(block, mesh, plan)
    return gpt


def megatron_installed() -> bool:
    """Whether megatron-core is there; it is optional."""
    return importlib.util.find_spec("megatron") is not None


def megatron_parallel(gpt: GPT) -> nn.Module:
    """Cut the blocks of ``gpt`` in place with megatron-core's layers, over all ranks.

    Megatron makes q, k and v one matrix, and so sums their input's gradient once. Here they stay
    three, and enter the parallel region together by Megatron's own function.

    Raises:
        ValueError: megatron-core is not installed, or heads or width do not divide.
    """
    if not megatron_installed():
        raise ValueError("megatron-core is not installed: pip install megatron-core==0.16.1")
    size, rank = dist.get_world_size(), dist.get_rank()
    check_tensor_parallel(n_head=gpt.config.n_head, n_embd=gpt.config.n_embd, size=size)
    with warnings.catch_warnings(action="ignore"):  # of libraries for GPUs that are not there
        from megatron.core import ModelParallelConfig, parallel_state, tensor_parallel
        from megatron.core.tensor_parallel import layers

        layers.linear_with_grad_accumulation_and_async_allreduce.warned = True  # of a CUDA setting

        parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=size)
        options = dict(
            config=ModelParallelConfig(
                tensor_model_parallel_size=size,
                use_cpu_initialization=True,
                params_dtype=gpt.head.weight.dtype,
                gradient_accumulation_fusion=False,
            ),
            init_method=nn.init.zeros_,
            skip_bias_add=False,
        )

        def by_columns(linear: nn.Linear, *, enter: bool = True) -> nn.Module:
            layer = tensor_parallel.ColumnParallelLinear(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                gather_output=False,
                disable_grad_reduce=not enter,
                **options,
            )
            layer.weight.data.copy_(linear.weight.chunk(size, dim=0)[rank])
            if linear.bias is not None:
                layer.bias.data.copy_(linear.bias.chunk(size)[rank])
            return _OutputOnly(layer)

        def by_rows(linear: nn.Linear) -> nn.Module:
            layer = tensor_parallel.RowParallelLinear(
                linear.in_features,
                linear.out_features,
                bias=True,
                input_is_parallel=True,
                **options,
            )
            layer.weight.data.copy_(linear.weight.chunk(size, dim=1)[rank])
            layer.bias.data.copy_(linear.bias)
            return _OutputOnly(layer)

        enter = tensor_parallel.copy_to_tensor_model_parallel_region
        blocks: Any = gpt.blocks
        for block in blocks:
            attention, mlp = block.attention, block.mlp
            attention.n_head //= size
            for name in ("q", "k", "v"):
                setattr(attention, name, by_columns(getattr(attention, name), enter=False))
            attention.proj = by_rows(attention.proj)
            attention.register_forward_pre_hook(lambda module, args: (enter(args[0]),))
            mlp.up, mlp.down = by_columns(mlp.up), by_rows(mlp.down)
    return gpt


class _OutputOnly(nn.Module):
    """Megatron's layers return (output, bias); the course's GPT expects the output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]
