"""ZeRO beside expert parallelism: who shards what.

                expert 0   expert 1     four ranks with tokens of their own, R = 4
    data 0         0          1
    data 1         2          3

    dense       the same in all four: each keeps a quarter of its states
    experts     the same in a column: each keeps half of the states of *its* experts

So both kinds of parameters of a unit are in flat tensors of their own, with a group of ranks for
each. Gradients are the sum over that group, divided by R for both (expert_groups.py says why).
Rank 0 has then a quarter of all states of the model, of the experts too: E / 2 of them, halved.

    mesh = make_expert_mesh(data=2, expert=2)
    model = expert_zero(model, mesh, stage=3)
    optimizer = torch.optim.AdamW(model.shards)

Source: Rajbhandari et al., "DeepSpeed-MoE", 2022, section 5; Rajbhandari et al., "ZeRO", SC 2020.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from dlcourse.parallel.expert_groups import (
    batch_group,
    cut_tensors,
    divide_experts,
    expert_parameters,
)
from dlcourse.parallel.expert_trip import Exchange, torch_exchange
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3 import ZeRO3

STAGES: dict[int, type[ZeRO1]] = {1: ZeRO1, 2: ZeRO2, 3: ZeRO3}


def expert_zero(
    module: nn.Module,
    mesh: DeviceMesh,
    *,
    stage: int,
    exchange: Exchange = torch_exchange,
    **options: Any,
) -> ZeRO1:
    """Divide a model's experts over a mesh, and the states of all of it by a stage of ZeRO.

    Checkpoints by ``zero_checkpoint.py`` are not for it: a rank's file is of its own experts.

    Args:
        module: used up; it starts from rank 0's parameters everywhere.
        mesh: from ``make_expert_mesh``; along "tensor" matrices are cut as in
            ``ExpertDataParallel``.
        stage: 1, 2 or 3.
        options: as those of ``ZeRO1``.

    Raises:
        ValueError: another stage; and in every rank as ``ExpertDataParallel`` and ``ZeRO1``.
    """
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r} of ZeRO: give 1, 2 or 3, or take ExpertDataParallel")
    divided = divide_experts(cut_tensors(module, mesh), mesh, exchange=exchange)
    copies = dict.fromkeys(expert_parameters(divided), mesh.get_group("data"))
    return STAGES[stage](divided, process_group=batch_group(mesh), groups=copies, **options)
