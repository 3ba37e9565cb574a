"""A step of a model with experts as one rank of thousands, where no router has numbers.

How many tokens go where depends on the tokens. Here every expert gets the same, as in most
published speeds; all else runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from dlcourse.collectives.compat import all_gather_single
from dlcourse.models.moe import Routing
from dlcourse.parallel.expert import ExpertParallel, Plan
from dlcourse.parallel.expert_groups import ExpertDataParallel


def expert_step(
    model: nn.Module, mesh: DeviceMesh, micro_batches: int
) -> Callable[[Tensor, Tensor], None]:
    """The model over the mesh with AdamW: a function that takes one step."""
    parallel = ExpertDataParallel(model, mesh)
    balance(parallel)
    optimizer = torch.optim.AdamW(parallel.parameters())

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> None:
        parts = zip(tokens_BT.chunk(micro_batches), targets_BT.chunk(micro_batches), strict=True)
        for x_BT, y_BT in parts:
            (parallel(x_BT, y_BT) / micro_batches).backward()
        parallel.sync_gradients()
        optimizer.step()

    return step


def balance(model: nn.Module) -> None:
    """Make every layer of divided experts follow ``balanced_plan``."""
    for layer in model.modules():
        if isinstance(layer, ExpertParallel):
            layer.plan = MethodType(balanced_plan, layer)  # type: ignore[method-assign]


def balanced_plan(layer: ExpertParallel, routing: Routing, dtype: torch.dtype) -> Plan:
    """In place of ``ExpertParallel.plan``: every rank has the same number of rows for each expert,
    or one more for the first ones. The counts are sent all the same.
    """
    logits_NE = routing.logits_NE
    mine = torch.zeros(layer.num_experts + 3, dtype=torch.int64, device=logits_NE.device)
    gathered = mine.new_empty(dist.get_world_size(layer.batch_group) * len(mine))
    all_gather_single(gathered, mine, group=layer.batch_group)
    copies, p = len(logits_NE) * layer.top_k, len(layer.places)
    least, more = divmod(copies, layer.num_experts)
    counts = [least + (expert < more) for expert in range(layer.num_experts)]
    each = layer.num_experts // p
    per_rank = [counts[first : first + each] for first in range(0, layer.num_experts, each)]
    mine_e = per_rank[dist.get_rank(layer.process_group)]
    return Plan(
        copies_M=torch.arange(copies, device=logits_NE.device),
        sent=[sum(rows) for rows in per_rank],
        received=[sum(mine_e)] * p,
        order_G=torch.arange(sum(mine_e) * p, device=logits_NE.device),
        rows=[rows * p for rows in mine_e],
    )
