"""Autocast in miniature: which operator runs in which type, and who converts.

Three lists decide. Operators that mostly multiply run in 16 bits: they gain most, and add up in 32
bits inside. Operators in which 16 bits would lose the result run in 32. Operators that join tensors
take the widest type that they are given. All others run in the types that they get, so that
``float32 + bfloat16`` is float32, as always in torch.

    with Autocast("cpu", torch.bfloat16):
        loss = model(tokens, targets)
    loss.backward()  # outside: backward runs in the types that forward has left

It is a mode over torch's *functions*, above autograd, because the casts belong to the graph: the
gradient of a cast is a cast back. ``torch.autocast`` does the same one layer deeper, and so it also
sees the functions that other functions call; this one sees only what a module calls. It says of
itself to torch that autocast is on, and so ``torch.autocast(..., enabled=False)`` switches it off.

Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018; the lists are from PyTorch's
"Autocast Op Reference".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

from dlcourse.training.mixed_precision.support import check_precision


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOW = _names(
    "linear matmul __matmul__ __rmatmul__ mm bmm mv addmm addbmm baddbmm einsum "
    "scaled_dot_product_attention conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
    "conv_transpose3d"
)
LOSSES = _names(
    "cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss kl_div ctc_loss "
    "binary_cross_entropy_with_logits soft_margin_loss prod cdist"
)
SUMS_AND_POWERS = _names(
    "softmax log_softmax softmin layer_norm group_norm norm sum cumsum cumprod exp expm1 log log2 "
    "log10 log1p pow __pow__ reciprocal rsqrt acos asin cosh sinh tan erfinv"
)
# A CPU's kernels add up in float32 inside, so its lists are shorter.
FLOAT32 = {"cpu": LOSSES, "cuda": LOSSES | SUMS_AND_POWERS}
WIDEST = {
    "cpu": _names("cat stack concat"),
    "cuda": _names("cat stack concat addcmul addcdiv cross dot tensordot index_put"),
}


class Autocast(TorchFunctionMode):
    """Convert the arguments of the operators in the lists, in a ``with`` block.

    Args:
        device_type: whose tensors to convert, and whose lists: "cpu", or "cuda" for all others.
        dtype: torch.bfloat16 or torch.float16.

    The 16-bit copy of a parameter is kept until the block ends: one that is used twice is converted
    once.

    Raises:
        ValueError: the device does not compute in ``dtype``.
    """

    def __init__(self, device_type: str, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        check_precision(dtype, device_type)
        self.device_type, self.dtype = device_type, dtype
        lists = "cpu" if device_type == "cpu" else "cuda"
        self.float32, self.widest = FLOAT32[lists], WIDEST[lists]
        self.copies: dict[int, tuple[Tensor, Tensor]] = {}  # the parameter is held: its id stays
        self.outside: list[tuple[bool, torch.dtype]] = []  # torch's autocast before each ``with``

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_autocast_enabled(self.device_type):
            return func(*args, **kwargs)
        if kwargs.get("out") is None:  # as in torch: who gives the result's place gives its type
            args, kwargs = self._convert(getattr(func, "__name__", ""), args, kwargs)
        torch.set_autocast_enabled(self.device_type, False)  # or torch would convert, too
        try:
            return func(*args, **kwargs)
        finally:
            torch.set_autocast_enabled(self.device_type, True)

    def _convert(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments in the types in which the operator ``name`` runs."""
        if name in LOW:
            dtype = self.dtype
        elif name in self.float32:
            dtype = torch.float32
        elif name in self.widest:
            found = [x.dtype for x in tree_iter((args, kwargs)) if self._converts(x)]
            dtype = torch.float32 if torch.float32 in found else self.dtype
        else:
            return args, kwargs
        return tree_map(lambda x: self._cast(x, dtype), (args, kwargs))

    def __enter__(self) -> Autocast:
        kind = self.device_type
        self.outside.append((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)))
        self._tell_torch(True, self.dtype)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self.copies.clear()  # what backward needs, the graph holds
        super().__exit__(*exception)
        self._tell_torch(*self.outside.pop())

    def _tell_torch(self, enabled: bool, dtype: torch.dtype) -> None:
        torch.set_autocast_enabled(self.device_type, enabled)
        torch.set_autocast_dtype(self.device_type, dtype)

    def _converts(self, x: Any) -> bool:
        """Numbers of this device, but not float64: whoever chose it wants the precision."""
        return (
            isinstance(x, Tensor)
            and x.is_floating_point()
            and x.device.type == self.device_type
            and x.dtype != torch.float64
        )

    def _cast(self, x: Any, dtype: torch.dtype) -> Any:
        if not self._converts(x) or x.dtype == dtype:
            return x
        weight = x.is_leaf and x.requires_grad and dtype == self.dtype
        if not (weight and torch.is_grad_enabled()):  # no_grad's has no graph
            return x.to(dtype)
        if id(x) not in self.copies:
            self.copies[id(x)] = x, x.to(dtype)
        return self.copies[id(x)][1]
