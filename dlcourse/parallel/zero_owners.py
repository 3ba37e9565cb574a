"""Which ZeRO model a parameter is in, so that mistakes with it are refused in a sentence.

A parameter may be in one ZeRO model alone, must stay the parameter that it was, and is updated
through its shard: any optimizer's ``step()`` is checked for that.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from dlcourse.parallel.data import NaiveDataParallel
from dlcourse.parallel.zero_module import ShardedModule

_owners = WeakTensorKeyDictionary()  # of every parameter and every shard: a weak reference


def owner_of(tensor: Tensor) -> ShardedModule | None:
    """The ZeRO model in which this parameter or shard is."""
    return _owners.get(tensor, lambda: None)()


def claim(model: ShardedModule) -> None:
    """From now on, parameters and shards are known to be in ``model``."""
    for flats in model.flats_of.values():
        for flat in flats:
            for tensor in (flat.shard, *flat.parameters):
                _owners[tensor] = weakref.ref(model)
    model.module.zero_grad = ZeroGrad(model)  # type: ignore[method-assign]


def refuse_second_wrapper(module: nn.Module) -> None:
    """Raises ValueError where somebody else takes care of the gradients of ``module``."""
    for part in module.modules():
        if isinstance(part, (ShardedModule, NaiveDataParallel, DistributedDataParallel)):
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


def check_parameters(model: ShardedModule) -> None:
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


class ZeroGrad:
    """``module.zero_grad`` while the module is in a ZeRO model: the shards' gradients, too."""

    def __init__(self, model: ShardedModule) -> None:
        self.model, self.module = weakref.ref(model), weakref.ref(model.module)

    def __call__(self, set_to_none: bool = True) -> None:
        model, module = self.model(), self.module()
        if model is not None:
            model.zero_grad(set_to_none)
        elif module is not None:
            nn.Module.zero_grad(module, set_to_none)

    def __deepcopy__(self, memo: dict[int, nn.Module]) -> Callable[..., None]:
        return partial(nn.Module.zero_grad, memo[id(self.module())])  # of the copy

    def __reduce__(self) -> tuple:
        return partial, (nn.Module.zero_grad, self.module())


def _before_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple | None:
    """Refuse a step that would go wrong; with a closure, which makes the gradients, after it."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the first is the optimizer
    if closure is None:
        _check_step(optimizer)
        return None

    def checked() -> Any:
        loss = closure()
        _check_step(optimizer)
        return loss

    return (optimizer, checked, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}


def _check_step(optimizer: Optimizer) -> None:
    models: dict[int, ShardedModule] = {}
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            model = owner_of(tensor)
            if model is None:
                continue
            name, kind = type(model).__name__, type(optimizer).__name__
            if not any(tensor is flat.shard for flat in model.flats):
                raise RuntimeError(
                    f"this {kind} was given a parameter of a module that is in a {name}, whose "
                    f"gradients are in shards: make it after the {name}, {kind}(model.shards)"
                )
            models[id(model)] = model
    for model in models.values():
        model.before_step()


register_optimizer_step_pre_hook(_before_step)
