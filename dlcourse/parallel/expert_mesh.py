"""All of them at once: data x pipeline x expert x tensor parallelism, and ZeRO stage 1.

A pipeline cuts the model into stages; within each, experts are divided over the ranks along
"expert" as in ``expert_groups.py``, and a micro-batch's tokens travel between these ranks alone.
Only what goes to the next stage, (B, T, C), leaves them.

                       expert 0        expert 1
    data 0  pipeline 0    0               1        the first half of the layers; of each half of
            pipeline 1    2               3        the experts a rank. The second half
    data 1  ...                                    the same again, on other sequences

    model = ExpertMeshParallel(gpt, make_full_mesh(pipeline=2, expert=2), zero=True)

Ranks along "data" and "expert" have tokens of their own. All of them average what is dense; those
along "data" alone average the experts. ZeRO's stages 2 and 3 are not for pipelines (see
``mesh.py``); without one there is ``expert_zero.py``.

Source: Narayanan et al., SC 2021, and Rajbhandari et al., "DeepSpeed-MoE", 2022.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dlcourse.models.gpt import GPT
from dlcourse.parallel.divisibility import check_mesh
from dlcourse.parallel.expert_groups import (
    average_gradients,
    batch_group,
    divide_experts,
    expert_parameters,
    with_groups,
)
from dlcourse.parallel.expert_tensor import check_hidden
from dlcourse.parallel.mesh import MeshParallel
from dlcourse.parallel.zero import ZeRO1

SIDES = ("data", "pipeline", "expert", "tensor")


def make_full_mesh(
    *, data: int = 1, pipeline: int = 1, expert: int = 1, tensor: int = 1
) -> DeviceMesh:
    """All ranks as a grid with the sides "data", "pipeline", "expert" and "tensor".

    Raises:
        ValueError: the sides do not multiply out to the number of ranks.
    """
    sides = dict(data=data, pipeline=pipeline, expert=expert, tensor=tensor)
    check_mesh(**sides, world_size=dist.get_world_size())
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return with_groups(init_device_mesh(device, tuple(sides.values()), mesh_dim_names=SIDES))


class _Copies:
    """What averages a stage's gradients where nothing is sharded."""

    def __init__(self, layers: nn.Module, copies: Any, everyone: Any) -> None:
        self.layers, self.copies, self.batch_group = layers, copies, everyone

    @torch.no_grad()
    def sync_gradients(self) -> None:
        average_gradients(self.layers, self.copies, self.batch_group)


class ExpertMeshParallel(MeshParallel):
    """As ``MeshParallel``, for a GPT with MoE layers, whose experts are divided along "expert".

    Args:
        gpt: used up; it starts from rank 0's parameters everywhere.
        mesh: from ``make_full_mesh``.
        num_micro_batches, zero: as in ``MeshParallel``.

    Raises:
        ValueError: as ``MeshParallel`` and ``expert_parallel``; a stage without any MoE layer.
    """

    def __init__(
        self, gpt: GPT, mesh: DeviceMesh, *, num_micro_batches: int = 1, zero: bool = False
    ) -> None:
        check_hidden(gpt, mesh["tensor"].size())
        super().__init__(gpt, mesh, num_micro_batches=num_micro_batches, zero=zero)

    def make_copies(self, zero: bool) -> Any:
        """Divide the experts of this stage's layers; then as in ``MeshParallel``."""
        everyone = self.groups["data"] = batch_group(self.mesh)  # who has other tokens
        copies = self.mesh.get_group("data")
        divide_experts(self.layers, self.mesh)
        if not zero:
            return _Copies(self.layers, copies, everyone)
        groups = dict.fromkeys(expert_parameters(self.layers), copies)
        return ZeRO1(self.layers, process_group=everyone, groups=groups)
