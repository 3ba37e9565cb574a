"""Whole parameters of stage 3: state dicts, what is written to them, and what cannot be done.

Between a forward and the next, a rank of stage 3 has shards alone. So a state dict gathers first,
and what somebody has written to gathered parameters goes back into the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dlcourse.parallel.zero_flat_parameters import FlatParameters, is_callable
from dlcourse.parallel.zero_module import ShardedModule
from dlcourse.parallel.zero_same_numbers import checksum, refuse_different


class GatheredState(ShardedModule):
    """State dicts of stage 3, and what is written to gathered parameters."""

    is_gathered: bool

    def gathered(self) -> AbstractContextManager[None]:
        """All parameters at once, in all ranks."""
        raise NotImplementedError

    @torch.no_grad()
    def write_shards(self) -> None:
        """Take this rank's part of what the parameters are now. Sends a checksum."""
        parts: dict[FlatParameters, Tensor] = {}
        checksums: dict[Any, int] = {}  # of what each group of ranks has the same of
        for flat in (flat for flats in self.flats_of.values() for flat in flats):
            row = torch.cat([parameter.flatten() for parameter in flat.parameters])
            group = flat.process_group
            checksums[group] = checksum(row, checksums.get(group, 0))
            padding = flat.shard.numel() * flat.world_size - flat.numel
            parts[flat] = flat.mine(F.pad(row, (0, padding))).to(flat.shard.device, copy=True)
        refuse_different(
            checksums,
            self.process_group,
            self.flats[0].full.device,
            "parameters were changed inside gathered(), and those",
        )
        for flat, part in parts.items():
            if not torch.equal(part, flat.shard):  # or the shard would count as changed
                flat.shard.copy_(part)

    def refuse_unless_gathered(self, *_: object) -> None:
        if not self.is_gathered:
            raise RuntimeError(
                "the parameters of a module in a ZeRO3 are in shards: call state_dict() or "
                "load_state_dict() of the ZeRO3 itself, in all ranks, or put the call into "
                "`with model.gathered():`"
            )

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As torch's, of whole parameters; a collective, so call it in all ranks."""
        with self.gathered():
            found = super().state_dict(*args, **kwargs)
            for name, value in found.items():
                found[name] = value.detach() if isinstance(value, Tensor) else value
            return found

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch's; call it in all ranks, with the same numbers."""
        with self.gathered():
            return super().load_state_dict(state_dict, strict, assign)


def refuse_written(flat: FlatParameters) -> None:
    """Raises RuntimeError where somebody has written to a parameter that is not here.

    Torch refuses that itself where elements share the memory of ``nothing``; one alone does not.
    """
    nothing = flat.nothing
    if not flat.has_scalars or nothing is None or isinstance(nothing, FakeTensor):
        return
    may_be_nan = nothing.is_floating_point() or nothing.is_complex()  # integers are 0 instead
    if may_be_nan and not nothing.isnan():
        wrong, nothing[()] = nothing.item(), float("nan")
        raise RuntimeError(
            f"{wrong} was written to a parameter of one element that is in shards, where nobody "
            "reads it: write to parameters in `with model.gathered():`"
        )


def refuse_uncalled_units(units: Sequence[nn.Module] | None) -> None:
    """Raises ValueError for a unit whose parameters nobody would gather."""

    def holds_parameters(module: nn.Module) -> bool:
        if is_callable(module):
            return False
        return bool(module._parameters) or any(map(holds_parameters, module.children()))

    for unit in units or ():
        if holds_parameters(unit):
            raise ValueError(
                f"units holds a {type(unit).__name__}, which has parameters and no forward, so "
                "nothing tells when they are needed: give the module that uses them"
            )


def refuse_gradients() -> None:
    """Raises RuntimeError where autograd would save parameters that go before backward."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "forward inside gathered() is for evaluation, since the parameters go before backward "
            "comes: put it into torch.no_grad(), or leave gathered() first"
        )


def refuse_second_derivative() -> None:
    """Raises RuntimeError in a backward with ``create_graph=True``."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph=True needs the parameters after backward, and a ZeRO3 frees them: take "
            "ZeRO2 for second derivatives"
        )


class UncopyableHook:
    """A module's hook that keeps the module from being copied: a copy would call it, too."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __reduce_ex__(self, _: Any) -> NoReturn:  # deepcopy asks here as well
        raise RuntimeError(
            "a module that is in a ZeRO3 cannot be copied or pickled, since its parameters are in "
            "shards: take state_dict() of the ZeRO3 in all ranks and load it into a new model"
        )
