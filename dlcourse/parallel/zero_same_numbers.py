"""Whether ranks that hold the same parameters have been given the same numbers for them.

Only checksums travel. In expert parallelism a parameter's group may be some of the ranks alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.collectives.p2p import Group
from dlcourse.parallel.zero_flat_parameters import FlatParameters


def checksum(tensor: Tensor, before: int = 0) -> int:
    """Of a tensor's bytes, and of what came before it."""
    row = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    return zlib.crc32(row.view(torch.uint8).cpu().numpy().data, before)


def refuse_different_states(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    flats: Sequence[FlatParameters],
    process_group: Group,
) -> None:
    """Raises ValueError in all ranks where they were given different numbers to load.

    Args:
        module: inside a ZeRO model, whose ``state_dict`` puts "module." before its names.
        flats: of all of its parameters.
        process_group: all ranks of the ZeRO model.
    """
    group_of = {p: flat.process_group for flat in flats for p in flat.parameters}
    parameters = dict(module.named_parameters(prefix="module", remove_duplicate=False))
    sums = dict.fromkeys([process_group, *group_of.values()], 0)
    for name, value in state_dict.items():
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
            group = group_of[parameters[name]] if name in parameters else process_group
            sums[group] = checksum(value, sums[group])
    refuse_different(sums, process_group, flats[0].full.device, "numbers in state_dict")


def refuse_different(
    checksums: Mapping[Any, int], process_group: Group, device: torch.device, what: str
) -> None:
    """Raises ValueError in all ranks where a group's checksum is not the same in all of its.

    Args:
        checksums: by group; the same groups' places in all ranks.
        process_group: all ranks.
        what: begins the message.
    """
    ranks = dist.get_process_group_ranks(process_group or dist.group.WORLD)
    firsts = [dist.get_process_group_ranks(group or dist.group.WORLD)[0] for group in checksums]
    mine = torch.tensor([[*checksums.values()], firsts], device=device)
    all_of_them = [torch.empty_like(mine) for _ in ranks]
    dist.all_gather(all_of_them, mine, group=process_group)
    found = [sums.T.tolist() for sums in all_of_them]
    different = [
        rank
        for rank, theirs in enumerate(found)
        if any(own != found[ranks.index(first)][i][0] for i, (own, first) in enumerate(theirs))
    ]
    if different:
        raise ValueError(
            f"{what} of ranks {different} are not those of rank 0: do the same in all ranks; "
            "nothing was changed"
        )
