"""Which operator ran in which type: a mode below autograd and autocast, which sees what they do."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dlcourse.measure.flops import flops_of


class Call(NamedTuple):
    """One operator, the types of its arguments and of its results, and its FLOPs."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    flops: int


class DtypeLog(TorchDispatchMode):
    """Writes down every operator that makes floating-point numbers in a ``with`` block.

        with DtypeLog() as forward:
            loss = model(tokens, targets)

    Attributes:
        calls: what ran, in order. Views are left out: they compute nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = _types((args, kwargs)), _types(result)
        if outputs and not func.is_view and func.namespace != "prim":
            count = flops_of(func)
            flops = count(args, kwargs or {}, result) if count else 0
            self.calls.append(Call(func._opname, inputs, outputs, int(flops)))
        return result

    def flops(self) -> dict[str, int]:
        """FLOPs of matrix products by the type they ran in: that of their first argument."""
        total: Counter[str] = Counter()
        for call in self.calls:
            if call.flops:
                total[call.inputs[0]] += call.flops
        return dict(total)

    def share_in(self, *names: str) -> float:
        """The part of the FLOPs that ran in these types, 0 to 1."""
        total = self.flops()
        return sum(total.get(name, 0) for name in names) / max(1, sum(total.values()))

    def by_operator(self) -> dict[str, str]:
        """Operator -> "types in → types out", each pair that occurred, in order of first call."""
        conversions: dict[str, list[str]] = {}
        for call in self.calls:
            types = " + ".join(dict.fromkeys(call.inputs)) + " → " + call.outputs[0]
            if types not in conversions.setdefault(call.op, []):
                conversions[call.op].append(types)
        return {op: "\n".join(found) for op, found in conversions.items()}


def _types(tree: Any) -> tuple[str, ...]:
    return tuple(
        str(x.dtype).removeprefix("torch.")
        for x in tree_iter(tree)
        if isinstance(x, Tensor) and x.dtype.is_floating_point
    )
