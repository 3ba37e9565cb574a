"""AdamW for 16-bit parameters: what it keeps is float32, 12 bytes for each parameter.

bfloat16 has 8 significant bits, so a parameter of 1.0 cannot change by less than 0.4%; most steps
are smaller and would be rounded away. Hence a **master** copy in float32 takes the steps, and the
16-bit parameter is its rounded image.

Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018; its 2 + 2 + 12 bytes are the
ones that the ZeRO paper divides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def master_type(p: Tensor) -> torch.dtype:
    """Float32, or the parameter's own type where that is wider."""
    return torch.promote_types(p.dtype, torch.float32)


class MasterAdamW(torch.optim.Optimizer):
    """As ``torch.optim.AdamW``, with a master copy and both moments in float32 or wider.

    Args:
        params: tensors to update, in any floating-point type.
        lr, betas, eps, weight_decay: as in torch.

    State of each parameter: ``master``, ``exp_avg``, ``exp_avg_sq`` (its shape), ``step``.
    What somebody else writes into a parameter, such as a loaded model's numbers, is its new master.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch, which calls it for the first parameters, too.

        Raises:
            ValueError: a parameter that is not of real numbers, or a number that cannot work.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name in ("lr", "eps", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name}={group[name]!r}: give 0 or more")
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas={group['betas']!r}: give numbers from 0 up to, not with, 1")
        for p in group["params"]:
            if not p.is_floating_point():
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} is {p.dtype}, and its master would be "
                    "torch.float32: give real numbers, or torch.optim.AdamW this parameter"
                )

    def make_state(self, p: Tensor) -> None:
        """What a first step makes for ``p``: no step is taken yet."""
        master = p.detach().to(master_type(p), copy=True)
        moments = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}
        self.state[p] = {"step": 0, "master": master, **moments}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without torch's closure
        """One step for every parameter that has a gradient.

        Raises:
            ValueError: a sparse gradient; before any parameter has changed.
        """
        if any(p.grad is not None and p.grad.is_sparse for p in self._parameters()):
            raise ValueError(
                "a gradient is sparse, and MasterAdamW's moments are not: make the embedding with "
                "sparse=False"
            )
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p not in self.state:
                    self.make_state(p)
                state = self.state[p]
                state["step"] += 1
                master, mean, square = state["master"], state["exp_avg"], state["exp_avg_sq"]
                # Where they differ, a parameter was loaded since: the old numbers must not return
                master.copy_(torch.where(p == master.to(p.dtype), master, p))
                grad = p.grad.to(master.dtype)
                master.mul_(1 - lr * group["weight_decay"])
                mean.lerp_(grad, 1 - beta1)
                square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                root = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
                master.addcdiv_(mean, root, value=-lr / (1 - beta1 ** state["step"]))
                p.copy_(master)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What ``state_dict`` returned: the same numbers with all digits, in memory of their own.

        Raises:
            ValueError: another optimizer's state, which has no master.
        """
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        saved = state_dict["state"]
        if other := [i for i in ids if i in saved and "master" not in saved[i]]:
            raise ValueError(
                f"state_dict holds {', '.join(saved[other[0]])} of parameter {other[0]} and no "
                "master: it is another optimizer's; load it there, or start this one without state"
            )
        super().load_state_dict(state_dict)  # gives all state the parameter's type, 16 bits
        for i, p in zip(ids, self._parameters(), strict=True):
            for name, value in saved.get(i, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][name] = value.to(p.device, master_type(p), copy=True)
