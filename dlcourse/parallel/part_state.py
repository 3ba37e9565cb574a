"""The state of a layer that is cut over ranks: which part a file holds is written into it.

All parts have the same names and shapes. A file of another rank would load, and be another model.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from dlcourse.collectives.p2p import Group

PARTS = WeakTensorKeyDictionary()  # parameters of such layers, and the group that shares each


class PartialLayer(nn.Module):
    """Base of layers of which each rank of ``process_group`` has its own part.

    Its ``state_dict`` says which one, and loads only where that one belongs: a ``ValueError``
    elsewhere, before any of the layer's numbers has changed.
    """

    process_group: Group

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_refuse_other_part)

    def own_part(self) -> dict[str, int]:
        """The number of this rank's part, and into how many the layer is cut."""
        group = self.process_group
        return {"part": dist.get_rank(group), "of": dist.get_world_size(group)}

    def get_extra_state(self) -> dict[str, int]:
        return self.own_part()

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Nothing to keep: ``_refuse_other_part`` has looked at it."""


def _refuse_other_part(
    layer: PartialLayer, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    saved, own = state_dict.get(f"{prefix}_extra_state"), layer.own_part()
    if saved is not None and saved != own:
        raise ValueError(
            f"state_dict holds part {saved['part']} of {saved['of']} of {prefix.rstrip('.')}, and "
            f"this rank part {own['part']} of {own['of']}: load what this rank has saved"
        )
