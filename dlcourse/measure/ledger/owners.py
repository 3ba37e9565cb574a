"""Who owns a storage: parameters, their gradients, and the states of optimizers.

`p.data = ...`, `p.grad = ...` and `state[...] = ...` pass no dispatcher, so owners are asked:
a parameter when it is used, its gradient when autograd has added to it, an optimizer around its
step, and all of them in `resolve`.
"""

from __future__ import annotations

import weakref
from functools import wraps
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.parameter import is_lazy

from dlcourse.measure.categories import GRADIENTS, OPTIMIZER_STATE, PARAMETERS
from dlcourse.measure.ledger.storages import Storages
from dlcourse.measure.tensors import tensors_in


class _Known:
    """A parameter: weak reference, hook, and where its data was when last seen."""

    __slots__ = ("hook", "key", "ref")

    def __init__(self, ref: weakref.ref) -> None:
        self.ref, self.key = ref, 0
        self.hook: Any = None


class Owners:
    """The parameters and optimizers that this rank has used."""

    def __init__(self, storages: Storages) -> None:
        self._storages = storages
        self._parameters: dict[int, _Known] = {}
        self._tenants: dict[int, int] = {}  # storage -> number of parameters in it
        self._optimizers: weakref.WeakSet[optim.Optimizer] = weakref.WeakSet()
        self._states_seen = 0
        self._hooking = False
        _all_owners.add(self)
        _let_tensors_be_swapped()

    # ------------------------------------------------------------------ parameters

    def see_parameter(self, parameter: Tensor) -> None:
        """A parameter is in use: remember it, and notice when its data has moved."""
        if is_lazy(parameter):  # has no storage until its module has seen an input
            return
        number = id(parameter)
        known = self._parameters.get(number)
        if known is None:
            known = _Known(weakref.ref(parameter, lambda _: self._forget(number)))
            self._parameters[number] = known
        elif parameter.__class__ is nn.Parameter and (
            parameter.untyped_storage()._cdata == known.key
        ):
            return
        if self._hooking and known.hook is None and parameter.requires_grad:
            self._hook(known, parameter)
        self._place(known, parameter)

    def _place(self, known: _Known, parameter: Tensor) -> None:
        """Note where a parameter's data is; what it left is no parameter any more."""
        for key, _ in self._storages.of(parameter):
            if key != known.key:
                self._leave(known.key)
                known.key = key
                self._tenants[key] = self._tenants.get(key, 0) + 1
        self._storages.claim(parameter, PARAMETERS)

    def _leave(self, key: int) -> None:
        tenants = self._tenants.pop(key, 0) - 1
        if tenants > 0:
            self._tenants[key] = tenants
        else:
            self._storages.let_go(PARAMETERS, key)

    def _forget(self, number: int) -> None:
        known = self._parameters.pop(number, None)
        if known is not None:
            self._leave(known.key)

    def release(self, parameter: Tensor) -> bool:
        """Hold no reference to a parameter any more. False: there was none."""
        known = self._parameters.get(id(parameter))
        if known is None or known.ref() is not parameter:
            return False
        if known.hook is not None:
            known.hook.remove()
        self._forget(id(parameter))
        return True

    # ------------------------------------------------------------------ gradients

    def hook_parameters(self, on: bool) -> None:
        """Put hooks on the known parameters, or take them off again.

        The hook tells at once when a gradient comes to be. It is there only while a cell is
        recorded: it must not slow others, or travel with a model that is saved.
        """
        self._hooking = on
        for known in list(self._parameters.values()):
            parameter = known.ref()
            if on and known.hook is None and parameter is not None and parameter.requires_grad:
                self._hook(known, parameter)
            elif not on and known.hook is not None:
                known.hook.remove()
                known.hook = None

    def _hook(self, known: _Known, parameter: Tensor) -> None:
        if parameter.is_leaf:
            known.hook = parameter.register_post_accumulate_grad_hook(self.see_gradient)
            # Before the learner's own hooks, which may free the gradient. (Not move_to_end: C++
            # goes through the underlying dict, in the order of insertion.)
            hooks = parameter._post_accumulate_grad_hooks
            theirs = [item for item in hooks.items() if item[0] != known.hook.id]
            for number, _ in theirs:
                del hooks[number]
            hooks.update(theirs)

    def see_gradient(self, parameter: Tensor) -> None:
        """autograd has just added to `parameter.grad`."""
        self._storages.claim(parameter.grad, GRADIENTS)

    def see_gradients(self) -> None:
        """Put every `parameter.grad` under gradients, whoever has set it."""
        for known in list(self._parameters.values()):
            parameter = known.ref()
            if parameter is not None and parameter.is_leaf and parameter.grad is not None:
                self._storages.claim(parameter.grad, GRADIENTS)

    # ------------------------------------------------------------------ optimizers

    def see_optimizer(self, optimizer: optim.Optimizer) -> None:
        """An optimizer steps: what it updates are parameters, what it keeps is its state."""
        if optimizer not in self._optimizers:
            self._optimizers.add(optimizer)
            self.see_state(optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self.see_parameter(parameter)
                if parameter.grad is not None:
                    self._storages.claim(parameter.grad, GRADIENTS)
        self._states_seen = len(optimizer.state)

    def see_state(self, optimizer: optim.Optimizer) -> None:
        """Put the optimizer's state tensors under optimizer_state."""
        for value in optimizer.state.values():
            self._claim_state(value)
        if not type(optimizer).__module__.startswith("torch."):
            # A learner's optimizer may keep its moments as attributes.
            for name, value in vars(optimizer).items():
                if name not in ("state", "param_groups", "defaults"):
                    self._claim_state(value)

    def see_newest_state(self, optimizer: optim.Optimizer) -> None:
        """The state that an optimizer's first step is just making: the newest entries."""
        new = len(optimizer.state) - self._states_seen
        if new > 0:  # the last one may have been incomplete when it was looked at before
            for key in islice(reversed(optimizer.state), new + 1):
                self._claim_state(optimizer.state[key])
            self._states_seen += new - 1

    def _claim_state(self, value: Any) -> None:
        for tensor in tensors_in(value, depth=2):
            self._storages.claim(tensor, OPTIMIZER_STATE)

    # ------------------------------------------------------------------ all of them

    def resolve(self, optimizers: bool = True) -> None:
        """Ask all owners what they own now, and release what they no longer own."""
        storages = self._storages
        storages.bury()
        owned: set[int] = set()
        for known in list(self._parameters.values()):
            parameter = known.ref()
            if parameter is None:
                continue
            self._place(known, parameter)
            owned.add(known.key)
            if parameter.is_leaf and parameter.grad is not None:
                storages.claim(parameter.grad, GRADIENTS)
                owned.update(key for key, _ in storages.of(parameter.grad))
        for category in (PARAMETERS, GRADIENTS):
            if not owned.issuperset(storages.owned[category]):
                for key in list(storages.owned[category]):
                    if key not in owned:  # a gradient bucket, a gathered weight
                        storages.let_go(category, key)
        if optimizers:
            for optimizer in list(self._optimizers):
                self.see_state(optimizer)


_all_owners: weakref.WeakSet[Owners] = weakref.WeakSet()


def _let_tensors_be_swapped() -> None:
    """Step aside for `torch.utils.swap_tensors`, which refuses tensors with weak references.

    `Module._apply` uses it (`to_empty`, `cuda`, ...) where parameters are DTensors. Stays for the
    life of the process: the ledger keeps its references between cells too.
    """
    swap = torch.utils.swap_tensors
    if hasattr(swap, "__wrapped__"):
        return

    @wraps(swap)
    def swap_tensors(t1: Tensor, t2: Tensor) -> None:
        held = [(owners, t) for owners in list(_all_owners) for t in (t1, t2) if owners.release(t)]
        try:
            swap(t1, t2)
        finally:
            for owners, tensor in held:
                owners.see_parameter(tensor)

    torch.utils.swap_tensors = swap_tensors
