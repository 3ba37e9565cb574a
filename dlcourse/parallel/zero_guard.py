"""What a ZeRO model refuses, so that a mistake is a sentence and not a model that does not learn.

The optimizer updates shards, the model computes with parameters, and between the two lie
``sync_gradients`` and ``sync_parameters``. Whoever goes around them changes numbers that nobody
reads, without any error of torch's.
"""

from __future__ import annotations

import gc
import weakref
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from dlcourse.parallel.data import NaiveDataParallel
from dlcourse.parallel.tensor_layers import ColumnParallelLinear, RowParallelLinear
from dlcourse.parallel.zero_flat_parameters import is_callable

if TYPE_CHECKING:
    from dlcourse.parallel.zero import ZeRO1

_owners = WeakTensorKeyDictionary()  # of every parameter and every shard: a weak reference


def owner_of(tensor: Tensor) -> ZeRO1 | None:
    """The ZeRO model in which this parameter or shard is."""
    return _owners.get(tensor, lambda: None)()


def refuse_second_wrapper(module: nn.Module, zero: type[ZeRO1]) -> None:
    """Raises ValueError where somebody else takes care of the gradients of ``module``."""
    for part in module.modules():
        if isinstance(part, (zero, NaiveDataParallel, DistributedDataParallel)):
            raise ValueError(
                f"module holds a {type(part).__name__}, which averages gradients itself: give "
                "the model that is in it, built anew"
            )
    parameters = list(module.parameters())
    if any(owner_of(p) for p in parameters):
        gc.collect()  # it may be one that nobody holds any more
    for owner in filter(None, map(owner_of, parameters)):
        raise ValueError(
            f"module is in a {type(owner).__name__} already: build the model anew for another one"
        )


def refuse_own_gradients(module: nn.Module) -> None:
    """Raises ValueError where ``module`` would look for whole gradients after backward."""
    for part in module.modules():
        if hasattr(part, "sync_gradients"):
            raise ValueError(
                f"module holds a {type(part).__name__}, whose sync_gradients() needs whole "
                "gradients after backward: stages 2 and 3 keep none; take ZeRO1"
            )


def claim(model: ZeRO1) -> None:
    """From now on, parameters and shards are known to be in ``model``."""
    for flats in model.flats_of.values():
        for flat in flats:
            for tensor in (flat.shard, *flat.parameters):
                _owners[tensor] = weakref.ref(model)
    model.module.zero_grad = ZeroGrad(model)


def check_parameters(model: ZeRO1) -> None:
    """Raises RuntimeError where parameters are not those that the model was made of."""
    advice = "change the module first, then make a new ZeRO model of it, built anew"
    places = {
        p: flat for flats in model.flats_of.values() for flat in flats for p in flat.parameters
    }
    for name, parameter in model.module.named_parameters():
        flat = places.get(parameter)
        if flat is None:
            raise RuntimeError(
                f"{name} is not among the parameters that this {type(model).__name__} was made of: "
                f"it was replaced or added afterwards (load_state_dict with assign=True does so); "
                f"{advice}"
            )
        if parameter.requires_grad != flat.shard.requires_grad:
            now, then = (
                ("trainable", "frozen") if parameter.requires_grad else ("frozen", "trainable")
            )
            raise RuntimeError(
                f"{name} is {now}, and was {then} when this {type(model).__name__} was made: "
                f"{advice}"
            )
        if not flat.holds(parameter):
            raise RuntimeError(
                f"{name} has been given another memory, as module.to() and .data do, so that the "
                f"optimizer's steps would not reach it; {advice}"
            )


PARAMETERS = (
    "{0}.parameters(): their gradients are in shards, so whoever clips or updates the parameters "
    "would change nothing. Give an optimizer model.shards, clip by "
    "model.clip_grad_norm_(max_norm), and to count or read them take model.module.parameters()"
)
UNSYNCED = (
    "step() of an optimizer before the gradients of the {0} are the mean over the ranks: call "
    "model.sync_gradients() after the last backward"
)


def check_clipping(model: ZeRO1) -> None:
    """Raises where ``model`` does not know the norm of the whole gradient."""
    if model.is_unsynced():
        raise RuntimeError("clip_grad_norm_() before sync_gradients(): the mean is not known yet")
    for name, part in model.module.named_modules():
        if isinstance(part, (ColumnParallelLinear, RowParallelLinear)):
            raise ValueError(
                f"clip_grad_norm_() with {name}, a {type(part).__name__}: other ranks hold other "
                "parts of its gradient, and each would clip by another number; train without "
                "clipping, or without tensor parallelism"
            )


def refuse_assign(assign: bool) -> None:
    """Raises ValueError for ``assign=True`` of ``load_state_dict``."""
    if assign:
        raise ValueError(
            "assign=True would put other parameters in the place of those that the shards are "
            "parts of: leave it out, and the numbers are copied"
        )


def refuse_move(model: ZeRO1, fn: Callable[[Tensor], Tensor]) -> None:
    """Raises RuntimeError where ``fn`` of ``module.to`` and its like would move parameters."""
    shard = model.flats[0].shard.detach()
    if fn(shard) is not shard:
        raise RuntimeError(
            f"the module of a {type(model).__name__} can be given another device or type before it "
            "is wrapped, not afterwards (for 16 bits there is dtype=torch.bfloat16)"
        )


SHARDS = (
    "the parameters of a module in a ZeRO3 are in shards: call state_dict() or load_state_dict() "
    "of the ZeRO3 itself, in all ranks, or put the call into `with model.gathered():`"
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


def refuse_different(model: ZeRO1, checksum: int) -> None:
    """Raises ValueError in all ranks where ``checksum`` is not the same in all of them."""
    mine = torch.tensor([checksum], device=model.flats[0].full.device)
    all_of_them = [torch.empty_like(mine) for _ in range(model.world_size)]
    dist.all_gather(all_of_them, mine, group=model.process_group)
    different = [rank for rank, theirs in enumerate(all_of_them) if theirs != all_of_them[0]]
    if different:
        raise ValueError(
            f"parameters were changed inside gathered(), and those of ranks {different} are not "
            "those of rank 0: make the same change in all ranks; nothing was changed"
        )


def no_copy(model: object) -> NoReturn:
    """Instead of ``copy.deepcopy`` and ``pickle``, which would tear parameters from shards."""
    raise RuntimeError(
        f"a {type(model).__name__} cannot be copied or pickled, since its shards are parts of "
        "other tensors: take model.state_dict() in all ranks and load it into a new model; "
        "deepcopy(model.module) is possible in stages 1 and 2"
    )


class Hook:
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


class ZeroGrad:
    """``module.zero_grad`` while the module is in a ZeRO model: the shards' gradients, too."""

    def __init__(self, model: ZeRO1) -> None:
        self.model, self.module = weakref.ref(model), weakref.ref(model.module)

    def __call__(self, set_to_none: bool = True) -> None:
        model = self.model()
        if model is None:
            nn.Module.zero_grad(self.module(), set_to_none)
        else:
            model.zero_grad(set_to_none)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return partial(nn.Module.zero_grad, memo[id(self.module())])  # of the copy

    def __reduce__(self) -> tuple:
        return partial, (nn.Module.zero_grad, self.module())


class Guarded(nn.Module):
    """What ZeRO models do for whoever uses them as any other module."""

    def before_step(self) -> None:
        """An optimizer that has some of ``shards`` calls this.

        Raises:
            RuntimeError: it would make a step with gradients of this rank's batch alone.
        """
        if self.is_unsynced() and any(shard.grad is not None for shard in self.shards):
            raise RuntimeError(UNSYNCED.format(type(self).__name__))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, those of the shards and those that are not reduced yet."""
        for flat in self.flats:
            flat.drop_gradients()
            if set_to_none:
                flat.shard.grad = None
            elif flat.shard.grad is not None:
                flat.shard.grad.zero_()

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """``torch.nn.utils.clip_grad_norm_`` over all ranks' shards; after ``sync_gradients``.

        Returns:
            The norm of the whole gradient before, the same number in every rank.

        Raises:
            RuntimeError: gradients are not synced.
            ValueError: the module is cut over other ranks as well, whose norms this cannot see.
        """
        check_clipping(self)
        grads = [shard.grad for shard in self.shards if shard.grad is not None]
        wide = torch.promote_types(self.flats[0].full.dtype, torch.float32)
        square = torch.zeros((), dtype=wide, device=self.flats[0].full.device)
        for grad in grads:
            square += torch.linalg.vector_norm(grad, dtype=wide).square()
        dist.all_reduce(square, group=self.process_group)
        norm = square.sqrt()
        for grad in grads:
            grad *= (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch does
        return norm

    def named_parameters(self, *args, **kwargs):
        """Refused: an optimizer needs ``shards``, and the module's own are in ``module``.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(PARAMETERS.format(type(self).__name__))

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As torch's; call it in all ranks, with the same numbers."""
        refuse_assign(assign)
        return super().load_state_dict(state_dict, strict)

    def _apply(self, fn, recurse: bool = True):  # behind .to(), .half(), .cuda()
        refuse_move(self, fn)
        return super()._apply(fn, recurse)

    def __reduce_ex__(self, protocol):
        no_copy(self)


class WholeState(nn.Module):
    """State dicts of stage 3, and what is written to gathered parameters."""

    @torch.no_grad()
    def write_shards(self) -> None:
        """Take this rank's part of what the parameters are now."""
        parts, checksum = {}, 0
        for flat in (flat for unit in self.units for flat in unit.flats):
            row = torch.cat([parameter.flatten() for parameter in flat.parameters])
            checksum = zlib.crc32(row.view(torch.uint8).cpu().numpy(), checksum)
            padding = flat.shard.numel() * flat.world_size - flat.numel
            parts[flat] = flat.mine(F.pad(row, (0, padding))).clone()
        refuse_different(self, checksum)
        for flat, part in parts.items():
            if not torch.equal(part, flat.shard):  # or the shard would count as changed
                flat.shard.copy_(part)

    def refuse_unless_gathered(self, *_: object) -> None:
        if not self.is_gathered:
            raise RuntimeError(SHARDS)

    def state_dict(self, *args, **kwargs) -> dict[str, Any]:
        """As torch's, of whole parameters; a collective, so call it in all ranks."""
        with self.gathered():
            found = super().state_dict(*args, **kwargs)
            for name, value in found.items():
                found[name] = value.detach() if isinstance(value, Tensor) else value
            return found

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As torch's; call it in all ranks, with the same numbers."""
        with self.gathered():
            return super().load_state_dict(state_dict, strict, assign)


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    models = {}
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            model = owner_of(tensor)
            if model is None:
                continue
            name, kind = type(model).__name__, type(optimizer).__name__
            if not any(tensor is shard for shard in model.shards):
                raise RuntimeError(
                    f"this {kind} was given a parameter of a module that is in a {name}, whose "
                    f"gradients are in shards: make it after the {name}, {kind}(model.shards)"
                )
            models[id(model)] = model
    for model in models.values():
        model.before_step()


register_optimizer_step_pre_hook(_before_step)
