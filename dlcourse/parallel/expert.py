"""Expert parallelism: each rank holds some of the experts, and tokens travel to them and back.

    router → permute → counts to all → all-to-all → my experts → all-to-all → weighted sum
                                       (dispatch)                (combine)

Every rank has its own tokens and all that is dense; of E experts in p ranks it has E / p. How many
tokens go where is known only once the router has decided, so the counts travel first:

    rank 0 has 3 tokens for expert 0, 1 for expert 1, 2 for expert 2, 0 for expert 3    sends 4, 2
    rank 1 has 1                      4               0               3                 sends 5, 3

Experts 0 and 1 live in rank 0, which receives 4 rows from itself and 5 from rank 1. They come
sorted by rank, then by expert; the experts want them by expert, then by rank.

    model = expert_parallel(model)        # every MoE in it; ranks have different tokens

The gradient of an expert holds the tokens of all ranks, that of a dense layer the rank's own: see
expert_groups.py for who averages what. Refusals are in expert_checks.py.

Shape suffixes as in moe.py, and
    p  ranks that share the experts    e  experts of one rank, E / p
    R  ranks that share the batch      G  rows that this rank's experts get

Sources: Lepikhin et al., "GShard", 2020; Rajbhandari et al., "DeepSpeed-MoE", 2022.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from dlcourse.collectives.compat import all_gather_single
from dlcourse.collectives.p2p import Group
from dlcourse.models.moe import MoE, Routing, capacity, combine, permute, rows_of
from dlcourse.parallel.expert_checks import check_model, gather_counts, refuse_wrappers
from dlcourse.parallel.expert_state import DividedExperts
from dlcourse.parallel.expert_trip import Exchange, Trip, torch_exchange
from dlcourse.parallel.replicas import broadcast_module
from dlcourse.parallel.tensor_layers import shard


class Plan(NamedTuple):
    """Which rows go where.

    Attributes:
        copies_M: copies of this rank's tokens, sorted by expert, as ``permute`` gives them.
        sent, received: rows to and from each of the p ranks.
        order_G: turns rows sorted by rank into rows sorted by expert.
        rows: of each of this rank's e experts.
    """

    copies_M: Tensor
    sent: list[int]
    received: list[int]
    order_G: Tensor
    rows: list[int]


class ExpertParallel(DividedExperts):
    """An ``MoE`` whose experts are divided over ranks; its parameters keep their names.

    Equal to the one-process layer on all ranks' tokens, those of the first rank first: capacity
    counts over all of them too. Made by ``expert_parallel``.

    ``counts_E`` and ``num_dropped`` of the last forward are those of all ranks that share the
    batch, and so is ``asked_E``, which is ``routing.counts()`` in one process: take it for the
    balance loss and for ``update_bias``. ``routing`` itself is this rank's. ``rows_p`` is how many
    rows each rank's experts got: the slowest one sets the pace.

    Args:
        moe: used up; equal in all ranks.
        process_group: the ranks that share the experts.
        batch_group: the ranks that share the batch, of which ``process_group`` is a part.
        exchange: who carries the rows.
        name: for messages.
    """

    def __init__(
        self, moe: MoE, process_group: Group, batch_group: Group, exchange: Exchange, name: str
    ) -> None:
        super().__init__()
        self.router, self.experts, self.shared = moe.router, moe.experts, moe.shared
        self.num_experts, self.top_k = moe.num_experts, moe.top_k
        self.capacity_factor, self.name = moe.capacity_factor, name
        self.process_group, self.batch_group, self.exchange = process_group, batch_group, exchange
        batch_ranks = dist.get_process_group_ranks(batch_group or dist.group.WORLD)
        place_of = {rank: place for place, rank in enumerate(batch_ranks)}
        ranks = dist.get_process_group_ranks(process_group or dist.group.WORLD)
        self.places = [place_of[rank] for rank in ranks]

    def plan(self, routing: Routing, dtype: torch.dtype) -> Plan:
        """Tell all ranks how many rows come, and work out which.

        Raises:
            FloatingPointError: in every rank, where the router of one gave NaN.
            ValueError: in every rank, where they send different types.
        """
        copies_M, counts_E = permute(routing.experts_NK, self.num_experts)
        gather = getattr(self.exchange, "gather", all_gather_single)
        counts_RE = gather_counts(counts_E, routing, dtype, self.batch_group, self.name, gather)
        self.asked_E = counts_RE.sum(0)
        if self.capacity_factor is not None:  # an expert takes the first ones, in the ranks' order
            num_tokens = int(self.asked_E.sum()) // self.top_k
            limit = capacity(num_tokens, self.num_experts, self.top_k, self.capacity_factor)
            room_RE = (limit + counts_RE - counts_RE.cumsum(0)).clamp(min=0)
            counts_RE = torch.minimum(counts_RE, room_RE)
            starts_E = counts_E.cumsum(0) - counts_E
            kept_E = counts_RE[dist.get_rank(self.batch_group)]
            expert_M = routing.experts_NK.flatten()[copies_M]
            place_M = torch.arange(len(copies_M), device=copies_M.device) - starts_E[expert_M]
            copies_M = copies_M[place_M < kept_E[expert_M]]
        self.counts_E = counts_RE.sum(0)
        self.num_dropped = int((self.asked_E - self.counts_E).sum())
        p, me = len(self.places), dist.get_rank(self.process_group)
        counts_ppe = counts_RE[self.places].unflatten(1, (p, -1))  # of a rank, for a rank's expert
        self.rows_p = counts_ppe.sum((0, 2))
        mine_pe = counts_ppe[:, me]
        expert_of_slot = torch.arange(mine_pe.size(1), device=mine_pe.device).repeat(p)
        order_G = expert_of_slot.repeat_interleave(mine_pe.flatten()).argsort(stable=True)
        sent, received = counts_ppe[me].sum(1).tolist(), mine_pe.sum(1).tolist()
        return Plan(copies_M, sent, received, order_G, mine_pe.sum(0).tolist())

    def forward(self, x: Tensor) -> Tensor:
        refuse_wrappers(self.experts, self.name)
        x_NC = rows_of(x)
        self.routing = routing = self.router(x_NC)
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type) and dtype != torch.float64:
            # Experts would round them: send half as much
            dtype = torch.get_autocast_dtype(x.device.type)
        plan = self.plan(routing, dtype)
        x_MC = x_NC[plan.copies_M // self.top_k].to(dtype)
        dispatch = Trip(plan.sent, plan.received, self.process_group, self.exchange)
        x_GC = dispatch.start(x_MC)
        shared_NC = None if self.shared is None else self.shared(x_NC)  # while the rows travel
        x_GC = dispatch.finish(x_GC)
        y_GC = self.experts(x_GC[plan.order_G], plan.rows)[plan.order_G.argsort()]
        back = Trip(plan.received, plan.sent, self.process_group, self.exchange)
        y_MC = back.finish(back.start(y_GC))
        y_NC = combine(y_MC, plan.copies_M, routing.weights_NK)
        return (y_NC if shared_NC is None else y_NC + shared_NC).view_as(x)


def expert_parallel(
    model: nn.Module,
    process_group: Group | DeviceMesh = None,
    *,
    batch_group: Group = None,
    exchange: Exchange = torch_exchange,
) -> nn.Module:
    """Divide the experts of every ``MoE`` in a model over ranks. Starts from the first rank's.

    Args:
        model: an ``MoE``, or a model with some in it, such as a GPT; used up.
        process_group: the ranks that share the experts, or a mesh of one dimension; all ranks by
            default.
        batch_group: the ranks that share the batch; ``process_group`` by default.
        exchange: what carries rows between ranks, with the arguments of ``all_to_all_single``.

    Returns:
        The model, changed in place; for an ``MoE`` its ``ExpertParallel``.

    Raises:
        ValueError: in every rank: no ``MoE`` in it, more ranks than experts, experts that do not
            divide, a capacity of nothing, models that differ between ranks.
    """
    if isinstance(process_group, DeviceMesh):
        process_group = process_group.get_group()
    batch_group = process_group if batch_group is None else batch_group
    check_model(model, process_group, batch_group)
    broadcast_module(model, process_group=batch_group)
    layers: dict[nn.Module, nn.Module] = {}
    parts: dict[nn.Parameter, nn.Parameter] = {}  # what two layers share, they share afterwards
    for name, module in [*model.named_modules()]:
        if isinstance(module, MoE):
            divide(module.experts, process_group, parts)
            layers[module] = ExpertParallel(module, process_group, batch_group, exchange, name)
    for module in [*model.modules()]:
        for key, child in module._modules.items():  # named_children leaves out a second name
            if child in layers:
                module._modules[key] = layers[child]
    return layers.get(model, model)


def divide(experts: Any, group: Group, parts: dict[nn.Parameter, nn.Parameter]) -> None:
    """Keep this rank's experts, in place; ``parts`` is what has been divided so far."""
    experts.cut = tuple(dict(experts.named_parameters(recurse=False)))
    experts.process_group = group  # these two are how clip_grad_norm_ and others know
    for name, whole in [*experts.named_parameters(recurse=False)]:
        if whole not in parts:
            part = parts[whole] = shard(whole, dim=0, group=group)
            parts[part] = part
        setattr(experts, name, parts[whole])
