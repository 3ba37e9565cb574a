"""Flat parameters: some parameters side by side in one tensor, cut into equal shards.

    full    | weight of a layer ......... | bias | weight of the next ...... | padding |
    shards  | rank 0          | rank 1          | rank 2          | rank 3             |

ZeRO does not cut layer by layer. It puts the parameters of a unit (a transformer block) into one
row and cuts that, wherever the cut falls. So every rank has the same number of elements, one
message moves a unit, and an optimizer that works element by element never notices.

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", SC 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.collectives.messages import Message, irecv, isend

# Torch 2.13 has renamed them
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class FlatParameters:
    """Parameters of one dtype, on one device, all trainable or all frozen.

    After this call each parameter is a view into ``full``, and rank r owns ``shard``, part r.

    Attributes:
        full: all of it. Shape: (world size * n,), where n is the shard's length.
        shard: what this rank's optimizer updates; part of ``full``. Shape: (n,).
        grad: gradients of this rank's batch, laid out as ``full``; None while there are none.

    Args:
        parameters: one or more.
        process_group: the ranks that share them; all by default.
        dtype: keep them in this type, for example ``torch.bfloat16``; in their own if None.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        process_group: dist.ProcessGroup | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.parameters, self.process_group = list(parameters), process_group
        self.rank, self.world_size = (
            dist.get_rank(process_group),
            dist.get_world_size(process_group),
        )
        first = self.parameters[0]
        self.numel = sum(parameter.numel() for parameter in self.parameters)
        shard_numel = -(-self.numel // self.world_size)  # rounded up: the rest is padding
        padded = shard_numel * self.world_size
        self.full = torch.zeros(padded, dtype=dtype or first.dtype, device=first.device)
        for parameter, view in zip(self.parameters, self.views(self.full), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.shard = nn.Parameter(self.mine(self.full), requires_grad=first.requires_grad)
        self.grad: Tensor | None = None
        self.gathering: dist.Work | None = None
        self.reducing: list[dist.Work | Message] = []
        self.inboxes: Tensor | None = None  # what other ranks have for this one. (p - 1, n)

    def views(self, flat: Tensor) -> list[Tensor]:
        """For each parameter its part of ``flat``, in the parameter's shape."""
        pieces = flat[: self.numel].split([parameter.numel() for parameter in self.parameters])
        shapes = [parameter.shape for parameter in self.parameters]
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def mine(self, flat: Tensor) -> Tensor:
        """This rank's part of ``flat``. Shape: (world size * n,) -> (n,)."""
        return flat.view(self.world_size, -1)[self.rank]

    @torch.no_grad()
    def start_gather(self) -> None:
        """Fill ``full`` from every rank's shard. A rank sends (p - 1) / p of it."""
        mine = self.shard.detach()
        self.gathering = all_gather_single(self.full, mine, self.process_group, async_op=True)

    def finish_gather(self) -> None:
        """Wait for it."""
        if self.gathering is not None:
            self.gathering.wait()
            self.gathering = None

    @torch.no_grad()
    def start_reduce(self) -> None:
        """Reduce-scatter of ``grad``: send each rank its part, receive what others have for me.

        A rank sends (p - 1) / p of it. Gloo's own reduce-scatter is an all-reduce inside and sends
        twice that; so over Gloo this is the exchange of `dlcourse.collectives.direct`, which goes
        on in the background until `finish_reduce`.
        """
        group, size = self.process_group, self.world_size
        if dist.get_backend(group) != "gloo":
            part = self.mine(self.grad)
            self.reducing = [reduce_scatter_single(part, self.grad, group=group, async_op=True)]
            return
        parts, peers = self.grad.view(size, -1), [(self.rank + k) % size for k in range(1, size)]
        self.inboxes = self.grad.new_empty(size - 1, self.shard.numel())
        receives = zip(self.inboxes, peers, strict=True)
        self.reducing = [irecv(inbox, k, group) for inbox, k in receives]
        self.reducing += [isend(parts[k], k, group) for k in peers]

    @torch.no_grad()
    def finish_reduce(self) -> Tensor:
        """Wait for it. Returns this rank's part of the sum, a view into ``grad``. Shape: (n,)."""
        for work in self.reducing:
            work.wait()
        total = self.mine(self.grad)
        for inbox in self.inboxes if self.inboxes is not None else ():
            total += inbox
        self.reducing, self.inboxes = [], None
        return total


def split_into_units(
    module: nn.Module, units: Sequence[nn.Module] | None = None
) -> dict[nn.Module, list[nn.Parameter]]:
    """Which parameters live together: those of each unit, and what is left over under ``module``.

    A parameter that is used in two places (tied embeddings) belongs to neither but to ``module``.

    Args:
        units: submodules, none inside another; the entries of every ``nn.ModuleList`` by default.

    Raises:
        ValueError: a unit is no submodule, or lies inside another.
    """
    if units is None:
        lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
        nested = {inner for outer in lists for m in outer for inner in m.modules()}
        units = [m for outer in lists if outer not in nested for m in outer]
    names = {m: name for name, m in module.named_modules()}
    home: dict[nn.Module, nn.Module] = {}
    for unit in units:
        if unit not in names or unit is module:
            raise ValueError(
                f"units holds a {type(unit).__name__} that is no part of the "
                f"{type(module).__name__}: give submodules of it"
            )
        for part in unit.modules():
            if part in home:
                raise ValueError(
                    f"units holds {names[unit]!r} and {names[home[part]]!r}, which share "
                    f"{names[part]!r}: give modules of which none is inside another"
                )
            home[part] = unit
    owners: dict[nn.Parameter, set[nn.Module]] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(home.get(part, module))
    groups: dict[nn.Module, list[nn.Parameter]] = {unit: [] for unit in (module, *units)}
    for parameter, places in owners.items():
        groups[places.pop() if len(places) == 1 else module].append(parameter)
    return groups


def alike(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Groups that can share a flat tensor: same dtype, same device, all trainable or all frozen."""
    groups: dict[tuple, list[nn.Parameter]] = {}
    for p in parameters:
        groups.setdefault((p.dtype, p.device, p.requires_grad), []).append(p)
    yield from groups.values()
