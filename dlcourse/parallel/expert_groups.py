"""Expert parallelism beside data parallelism: who averages what.

                expert 0   expert 1     a row shares the experts: rank 0 has the first half of them,
    data 0         0          1         rank 1 the second
    data 1         2          3         a column holds the same experts: its ranks are copies

All four ranks have tokens of their own, R = 4, and the batch's gradient is the mean over R.

    dense       each rank knows the gradient of its own tokens: the sum over all ranks / R
    experts     a rank's experts saw the tokens of its whole row, and backward has brought all of
                them: the sum over the *column* alone, and still / R, not / (ranks of the column)

With a third side, "tensor", ranks that have the same tokens share each matrix, those of the
experts too (expert_tensor.py); R is then data x expert.

    mesh = make_expert_mesh(data=2, expert=2)
    model = ExpertDataParallel(model, mesh)
    model(tokens, targets).backward()
    model.sync_gradients()

Source: Rajbhandari et al., "DeepSpeed-MoE", 2022, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dlcourse.models.gpt import GPT
from dlcourse.models.moe import Router, Routing
from dlcourse.parallel.divisibility import check_mesh
from dlcourse.parallel.expert import ExpertParallel, expert_parallel
from dlcourse.parallel.expert_tensor import Parts, TensorExperts, check_hidden
from dlcourse.parallel.expert_trip import Exchange, torch_exchange
from dlcourse.parallel.hooks import scale_gradient
from dlcourse.parallel.replicas import broadcast_buffers
from dlcourse.parallel.tensor import tensor_parallel

SIDES = ("data", "expert", "tensor")


def make_expert_mesh(*, data: int = 1, expert: int = 1, tensor: int = 1) -> DeviceMesh:
    """All ranks as a grid with the sides "data", "expert" and "tensor".

    Raises:
        ValueError: the sides do not multiply out to the number of ranks.
    """
    check_mesh(data=data, expert=expert, tensor=tensor, world_size=dist.get_world_size())
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return with_groups(init_device_mesh(device, (data, expert, tensor), mesh_dim_names=SIDES))


def with_groups(mesh: DeviceMesh) -> DeviceMesh:
    """The mesh, for which the groups over two of its sides have been made; in all ranks."""
    batch_group(mesh), _both(mesh)
    return mesh


def batch_group(mesh: DeviceMesh) -> Any:
    """The ranks that share a batch: a stage's copies along "data" and "expert"."""
    size = mesh["data"].size() * mesh["expert"].size()
    if size == dist.get_world_size():  # those along "tensor" have the same tokens
        return dist.group.WORLD
    return mesh["data", "expert"]._flatten().get_group()


def _both(mesh: DeviceMesh) -> Any:
    """The ranks that share the experts, all parts of each."""
    if mesh["tensor"].size() == 1:
        return mesh.get_group("expert")
    return mesh["expert", "tensor"]._flatten().get_group()


def cut_tensors(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Cut a GPT along "tensor", but for its experts; any other model stays as it is."""
    size = mesh["tensor"].size()
    if size == 1:
        return module
    check_hidden(module, size)
    return tensor_parallel(module, mesh.get_group("tensor")) if isinstance(module, GPT) else module


def divide_experts(
    module: nn.Module, mesh: DeviceMesh, *, exchange: Exchange = torch_exchange
) -> nn.Module:
    """Divide the experts of a module along "expert", and cut each along "tensor"."""
    tensor, expert = mesh.get_group("tensor"), mesh.get_group("expert")
    module = expert_parallel(module, expert, batch_group=batch_group(mesh), exchange=exchange)
    if mesh["tensor"].size() > 1:
        both = _both(mesh)
        parts: Parts = {}
        for layer in module.modules():
            if isinstance(layer, ExpertParallel):
                layer.experts = TensorExperts(layer.experts, tensor, expert, both, parts)
    return module


def expert_parameters(module: nn.Module) -> set[nn.Parameter]:
    """Those that only the ranks along "data" have the same of."""
    layers = (layer for layer in module.modules() if isinstance(layer, ExpertParallel))
    return {parameter for layer in layers for parameter in layer.experts.parameters()}


class ExpertDataParallel(nn.Module):
    """A model with MoE layers over a mesh: experts divided along a row, all else copied.

    Along "tensor" a GPT's attention, MLPs and vocabulary are cut as ``tensor_parallel`` does it,
    and of any model the experts. Clip by ``clipping.clip_grad_norm_``: torch's own would take
    another norm in each rank, and what is copied would drift apart.

    Args:
        module: used up; it starts from rank 0's parameters everywhere.
        mesh: from ``make_expert_mesh``.
        exchange: as in ``expert_parallel``.

    Raises:
        ValueError: in every rank, as ``expert_parallel`` and ``tensor_parallel``.
    """

    def __init__(
        self, module: nn.Module, mesh: DeviceMesh, *, exchange: Exchange = torch_exchange
    ) -> None:
        super().__init__()
        self.mesh, self.world_size = mesh, mesh["data"].size() * mesh["expert"].size()
        self.copies, self.batch_group = mesh.get_group("data"), batch_group(mesh)
        self.module = divide_experts(cut_tensors(module, mesh), mesh, exchange=exchange)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def no_sync(self) -> AbstractContextManager[None]:
        """Accumulate without averaging; tokens travel all the same."""
        return nullcontext()

    @torch.no_grad()
    def sync_gradients(self) -> None:
        """Make every gradient that of the mean over all ranks' losses. After backward."""
        average_gradients(self.module, self.copies, self.batch_group)


def average_gradients(module: nn.Module, copies: Any, everyone: Any) -> None:
    """Experts' gradients over ``copies`` that hold the same, all others over ``everyone``."""
    experts = expert_parameters(module)
    divided = dist.get_world_size(everyone) / dist.get_world_size(copies)
    groups: dict[Any, list[Tensor]] = {}
    for parameter in module.parameters():
        if parameter.grad is None and not parameter.requires_grad:
            continue  # frozen
        if parameter.grad is None:  # unused here, but another rank may be waiting for it
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad = parameter.grad.to_dense()  # an embedding's may be sparse
        if parameter in experts:  # it is the sum over the ranks of a row already
            scale_gradient(parameter, 1 / divided)
        group = copies if parameter in experts else everyone
        groups.setdefault((group, parameter.dtype), []).append(parameter.grad)
    for (group, _), gradients in groups.items():
        for some in _messages(gradients):
            message = _flatten_dense_tensors(some)
            message *= 1 / dist.get_world_size(group)
            dist.all_reduce(message, group=group)
            for grad, mean in zip(some, _unflatten_dense_tensors(message, some), strict=True):
                grad.copy_(mean)
    broadcast_buffers(module, process_group=everyone)


def _messages(gradients: list[Tensor], cap_bytes: int = 25 << 20) -> Iterator[list[Tensor]]:
    """Several gradients in a message, as many as it takes to fill one."""
    some: list[Tensor] = []
    for grad in gradients:
        some.append(grad)
        if sum(x.nbytes for x in some) >= cap_bytes:
            yield some
            some = []
    if some:
        yield some


def force_balance(model: nn.Module) -> list[Any]:
    """Make every router deal tokens out in turn: experts 0, 1, ..., and weigh them as it would.

    Published speeds of MoE models are mostly measured so. Returns handles; ``remove()`` each.
    """
    return [
        router.register_forward_hook(_in_turn)
        for router in model.modules()
        if isinstance(router, Router)
    ]


def _in_turn(router: Router, args: Any, routing: Routing) -> Routing:
    N, E = routing.logits_NE.shape
    copies = torch.arange(N * router.top_k, device=routing.logits_NE.device)
    experts_NK = (copies % E).view(N, router.top_k)
    weights_NK = routing.logits_NE.softmax(-1).gather(1, experts_NK)
    if router.top_k > 1:
        weights_NK = weights_NK / weights_NK.sum(1, keepdim=True)
    return Routing(experts_NK, weights_NK, routing.logits_NE)


def imbalance(rows_p: Tensor) -> float:
    """Rows of the busiest rank over the mean: 1.0 where all get the same."""
    return (rows_p.max() / rows_p.float().mean()).item()
