"""The state of a model whose experts are divided: which experts a file holds is written into it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.collectives.compat import all_gather_single
from dlcourse.collectives.p2p import Group


class DividedExperts(nn.Module):
    """Base of ``ExpertParallel``: its ``state_dict`` is of this rank's experts, and says so.

    It loads that, or the state of the whole one-process model, of which it takes its own experts.
    """

    experts: Any
    process_group: Group
    num_experts: int

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_take_own_experts)

    def own_experts(self) -> dict[str, int]:
        """The number of the first one, how many there are in this rank, and which part of each."""
        size, rank = dist.get_world_size(self.process_group), dist.get_rank(self.process_group)
        own = {"first": rank * self.num_experts // size, "count": self.num_experts // size}
        if isinstance(getattr(self.experts, "cut", ()), dict):  # by tensors too
            own["part"] = dist.get_rank(self.experts.process_group)
        return own

    def get_extra_state(self) -> dict[str, int]:
        return self.own_experts()

    def set_extra_state(self, state: dict[str, int]) -> None:
        if state != self.own_experts():
            raise ValueError(
                f"state_dict holds {_range(state)}, and this rank {_range(self.own_experts())} of "
                f"{self.num_experts}: load what this rank has saved, or whole_state_dict()"
            )


def _range(state: dict[str, int]) -> str:
    part = f"part {state['part']} of " if "part" in state else ""
    return f"{part}experts {state['first']} to {state['first'] + state['count'] - 1}"


def _take_own_experts(
    layer: DividedExperts, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    if f"{prefix}_extra_state" in state_dict:
        return
    own = layer.own_experts()
    for name, _parameter in layer.experts.named_parameters():
        whole = state_dict.get(f"{prefix}experts.{name}")
        if whole is not None and len(whole) == layer.num_experts:
            state_dict[f"{prefix}experts.{name}"] = whole.narrow(0, own["first"], own["count"])
            state_dict[f"{prefix}_extra_state"] = own


@torch.no_grad()
def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` of the one-process model. All ranks call it, and all get it.

    Args:
        model: from ``expert_parallel``; of an ``ExpertDataParallel`` its ``module``.

    Raises:
        ValueError: a matrix is cut by tensor parallelism too, which is not undone here.
    """
    state = model.state_dict()
    for name, layer in model.named_modules():
        cut = getattr(layer, "cut", ())
        if cut and (isinstance(cut, dict) or not name.endswith("experts")):
            raise ValueError(f"{name} is cut by tensor parallelism: gather that yourself")
        if not isinstance(layer, DividedExperts):
            continue
        prefix = f"{name}." if name else ""
        del state[f"{prefix}_extra_state"]
        for key, mine in layer.experts.named_parameters():
            whole = mine.new_empty(layer.num_experts, *mine.shape[1:])
            all_gather_single(whole, mine.detach().contiguous(), group=layer.process_group)
            state[f"{prefix}experts.{key}"] = whole
    return state
