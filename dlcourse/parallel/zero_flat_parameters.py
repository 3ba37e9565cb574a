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

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.collectives.buffers import views_like
from dlcourse.collectives.compat import all_gather_single, reduce_scatter_single
from dlcourse.collectives.p2p import PendingMessage, irecv, isend


class FlatParameters:
    """Parameters of one dtype, on one device, all trainable or all frozen.

    After this call each parameter is a view into ``full``, and rank r owns ``shard``, part r.

    Attributes:
        full: all of it. Shape: (world size * n,), where n is the shard's length.
        shard: what this rank's optimizer updates; part of ``full``. Shape: (n,).
        grad: gradients of this rank's batch, laid out as ``full``; None while there are none.
        seen: what ``shard.grad`` was when ``watch`` was called, to find out about ``zero_grad``.

    Args:
        parameters: one or more.
        process_group: the ranks that share them; all by default.
        dtype: keep them in this type, for example ``torch.bfloat16``; in their own if None, or if
            they are no floating-point numbers.
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
        dtype = (dtype if first.is_floating_point() else None) or first.dtype
        self.full = torch.zeros(padded, dtype=dtype, device=first.device)
        self.nbytes = self.full.nbytes  # also where stage 3 has freed its memory
        for parameter, view in zip(self.parameters, self.views(self.full), strict=True):
            view.copy_(parameter.detach())
            parameter.data, parameter.grad = view, None
        self.shard = nn.Parameter(self.mine(self.full), requires_grad=first.requires_grad)
        self.nothing: Tensor | None = None  # stage 3: what parameters are while they are not here
        self.has_scalars = any(p.numel() == 1 for p in self.parameters)
        self.grad: Tensor | None = None
        self.places: dict[nn.Parameter, Tensor] = {}  # each parameter's part of grad
        self.seen: tuple[Tensor, int] | None = None
        self.gathering: dist.Work | None = None
        self.reducing: list[dist.Work | PendingMessage] = []
        self.inboxes: Tensor | None = None  # what other ranks have for this one. (p - 1, n)

    def views(self, flat: Tensor) -> list[Tensor]:
        """For each parameter its part of ``flat``, in the parameter's shape."""
        return views_like(flat, self.parameters)

    def mine(self, flat: Tensor) -> Tensor:
        """This rank's part of ``flat``. Shape: (world size * n,) -> (n,)."""
        return flat.view(self.world_size, -1)[self.rank]

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether the parameter's memory is still a part of ``full``, or ``nothing``."""
        memories = [self.full] if self.nothing is None else [self.full, self.nothing]
        memory = parameter.untyped_storage()._cdata
        return any(tensor.untyped_storage()._cdata == memory for tensor in memories)

    def make_room(self) -> None:
        """Memory for the parameters' gradients, unless it is there already."""
        if self.grad is None:
            self.grad = torch.zeros_like(self.full)
            self.places = dict(zip(self.parameters, self.views(self.grad), strict=True))

    @torch.no_grad()
    def keep(self, parameter: nn.Parameter) -> None:
        """Move its gradient to its place in ``grad``, where autograd then adds the next ones.

        Where there is none, the place is filled by zeros.
        """
        self.make_room()
        place = self.places[parameter]
        if parameter.grad is None:
            place.zero_()
        elif parameter.grad is not place:
            place.copy_(parameter.grad.to_dense())  # an embedding's may be sparse
        parameter.grad = place

    def has_gradients(self) -> bool:
        """Whether some parameter's whole gradient is in this rank, not reduced yet."""
        return any(parameter.grad is not None for parameter in self.parameters)

    def drop_gradients(self) -> None:
        """Forget them."""
        for parameter in self.parameters:
            parameter.grad = None
        self.seen = None

    def watch(self) -> None:
        """From now on, ``zero_grad`` on the shard means these parameters' gradients, too."""
        if self.shard.grad is not None:
            self.seen = self.shard.grad, self.shard.grad._version

    def drop_if_cleared(self) -> None:
        """Forget the parameters' gradients if somebody has cleared the shard's meanwhile.

        Raises:
            RuntimeError: the shard's gradient was changed otherwise, while it is not complete.
        """
        if self.seen is None:
            return
        grad, version = self.seen
        if self.shard.grad is grad and grad._version != version and grad.any():
            raise RuntimeError(
                "a shard's gradient was changed (scaled, clipped) before sync_gradients(), which "
                "makes it the mean over the ranks: change it afterwards"
            )
        if self.shard.grad is not grad or grad._version != version:
            self.drop_gradients()

    @torch.no_grad()
    def start_gather(self) -> None:
        """Fill ``full`` from every rank's shard. A rank sends (p - 1) / p of it."""
        mine = self.shard.detach()
        self.gathering = all_gather_single(self.full, mine, self.process_group, async_op=True)

    def finish_gather(self) -> None:
        """Wait for it."""
        gathering, self.gathering = self.gathering, None  # one that fails does so once
        if gathering is not None:
            gathering.wait()

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
        units: submodules, none inside another; the entries of every ``nn.ModuleList`` by default,
            and where an entry is a list or a dict itself, what that holds.

    Raises:
        ValueError: a unit is no submodule, or lies inside another.
    """
    if units is None:
        lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
        nested = {inner for outer in lists for m in outer for inner in m.modules()}
        found = [u for outer in lists if outer not in nested for m in outer for u in callable_in(m)]
        units = list(dict.fromkeys(found))
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


def callable_in(module: nn.Module) -> Iterator[nn.Module]:
    """The module, or, where it is a container that nobody calls (a list, a dict), what it holds."""
    if is_callable(module):
        yield module
    else:
        for child in module.children():
            yield from callable_in(child)


def is_callable(module: nn.Module) -> bool:
    """Whether it has a forward; an ``nn.ModuleDict`` has none."""
    return type(module).forward is not nn.Module.forward


def by_type(
    parameters: Sequence[nn.Parameter], group_of: Mapping[nn.Parameter, Any] | None = None
) -> Iterator[list[nn.Parameter]]:
    """Those that can share a flat tensor: same dtype, device and ranks, all trainable or frozen."""
    found: dict[tuple, list[nn.Parameter]] = {}
    for p in parameters:
        group = (group_of or {}).get(p)
        found.setdefault((p.dtype, p.device, p.requires_grad, group), []).append(p)
    yield from found.values()
