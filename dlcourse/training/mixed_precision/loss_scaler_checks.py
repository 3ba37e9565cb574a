"""Whether a loss scaler that asks no other rank may decide over an optimizer's steps."""

from __future__ import annotations

import torch.distributed as dist
from torch.optim import Optimizer

from dlcourse.parallel.part_state import PARTS
from dlcourse.parallel.zero_owners import owner_of


def check_alone(optimizer: Optimizer) -> None:
    """Raise a ``ValueError`` where ranks hold parts of one model, of tensor parallelism or ZeRO.

    An infinity in one rank's part would let that rank alone skip, and the model would be broken.
    """
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        zero = owner_of(parameter)
        if zero is None and parameter not in PARTS:
            continue
        group = PARTS[parameter] if zero is None else zero.process_group
        if dist.get_world_size(group) > 1:
            raise ValueError(
                "optimizer updates this rank's part of a model, and a scaler without a "
                "process_group would skip for infinities in that part alone: give "
                "LossScaler(process_group=...) of the ranks that share the model"
            )
