"""Whether a module does what its class in the course or in torch does, and nothing else.

Cutting a matrix, or giving layers to stages, builds a forward anew from parts that it knows. What a
learner has changed in a subclass, by a hook or by a parametrization would be dropped in silence.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

# Methods that no call comes through
SETTING_UP = {"__init__", "init_weights", "reset_parameters", "extra_repr", "__repr__"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def check_known(module: nn.Module, known: type[nn.Module], name: str, doing: str) -> None:
    """Raise a ``ValueError`` where ``module``'s call is not that of ``known`` alone.

    Subclasses are welcome that only set up other parts (``__init__``); not those that replace a
    method of ``known``, and not hooks or parametrized weights.

    Args:
        name: of the module, for the message; "" of the model itself.
        doing: what is about to be done with it: "tensor_parallel cuts it".
    """
    if why := _changed(module, known):
        raise ValueError(
            f"{name or 'model'} is a {type(module).__name__} {why}: {doing} as a "
            f"{known.__name__} and would drop that without a word. Take a plain {known.__name__}, "
            "or parallelize that layer by hand"
        )


def _changed(module: nn.Module, known: type[nn.Module]) -> str:
    """What of it is not ``known``'s, in words; "" where nothing is."""
    if not isinstance(module, known):
        return f"and no {known.__name__}"
    if is_parametrized(module):
        return "with a parametrized weight"
    for owner in type(module).__mro__:
        if owner is known:
            break
        own = [n for n, value in vars(owner).items() if callable(value) and hasattr(known, n)]
        if replaced := sorted(set(own) - SETTING_UP):
            return f"with a {replaced[0]}() of its own"
    if "forward" in vars(module):
        return "with a forward() of its own"
    if any(getattr(module, hooks) for hooks in HOOKS):
        return "with hooks"
    return ""
