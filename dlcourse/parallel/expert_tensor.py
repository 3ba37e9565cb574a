"""Experts cut by tensors too: the ranks of a tensor group hold the same experts, a part of each.

    rows → enter → up by columns → GELU → down by rows → leave → + bias

As ``MLP`` in tensor.py, for all experts of a rank at once. The ranks of the group have the same
tokens, so they have the same rows, and add up their shares of them.

Shape suffixes as in moe.py: a rank has F / t of an expert's hidden width.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from dlcourse.collectives.p2p import Group
from dlcourse.models.moe import Experts, MoE
from dlcourse.parallel.divisibility import equal_part
from dlcourse.parallel.tensor_layers import copy_to, reduce_from, shard

Parts = dict[Tensor, nn.Parameter]


def check_hidden(model: nn.Module, size: int) -> None:
    """Raise a ``ValueError`` where ``size`` ranks cannot share each expert's hidden width."""
    for name, layer in model.named_modules():
        if isinstance(layer, MoE):
            equal_part(f"hidden width of {name or 'the experts'}", layer.experts.up.size(2), size)


class TensorExperts(nn.Module):
    """This rank's part of its experts; takes and gives what ``Experts`` does.

    Args:
        experts: whole, those of this rank.
        tensor: the ranks that hold these experts.
        expert: the ranks that hold the others, with the same part of each as this one.
        both: the ranks of all of them.
        parts: what has been cut already, so that tied layers stay tied.
    """

    def __init__(
        self, experts: Experts, tensor: Group, expert: Group, both: Group, parts: Parts
    ) -> None:
        super().__init__()
        self.process_group, self.size = tensor, dist.get_world_size(tensor)
        for name, dim in (("up", 2), ("up_bias", 1), ("down", 1)):
            whole = getattr(experts, name)
            if whole not in parts:
                parts[whole] = shard(whole, dim=dim, group=tensor)
            setattr(self, name, parts[whole])
        self.down_bias = experts.down_bias  # the same in the whole tensor group
        self.cut = dict.fromkeys(("up", "up_bias", "down"), both) | {"down_bias": expert}
        self.computing = [_without_memory(experts)]  # in a list: no module of this one

    def forward(self, x_MC: Tensor, counts: list[int]) -> Tensor:
        share = copy_to(self.down_bias, self.process_group) / self.size  # each rank adds one
        tensors: dict[str, Tensor] = dict(self.named_parameters()) | {"down_bias": share}
        x_MC = copy_to(x_MC, self.process_group)
        y_MC = functional_call(self.computing[0], tensors, (x_MC, counts))
        return reduce_from(y_MC, self.process_group)


def _without_memory(experts: Experts) -> Any:
    """``experts`` with parameters that have names only."""
    hollow = type(experts).__new__(type(experts))
    hollow.__dict__.update(experts.__dict__)
    hollow._parameters = {
        name: nn.Parameter(parameter.new_empty(0)) for name, parameter in experts.named_parameters()
    }
    return hollow
