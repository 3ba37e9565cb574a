"""AdamW for 16-bit parameters: what it keeps is float32, 12 bytes for each parameter.

bfloat16 has 8 significant bits, so a parameter of 1.0 cannot change by less than 0.4%; most steps
are smaller and would be rounded away. Hence a **master** copy in float32 takes the steps, and the
16-bit parameter is its rounded image.

Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018; its 2 + 2 + 12 bytes are the
ones that the ZeRO paper divides.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class MasterAdamW(torch.optim.Optimizer):
    """As ``torch.optim.AdamW``, with a master copy and both moments in float32.

    Args:
        params: tensors to update, in any floating-point type.
        lr, betas, eps, weight_decay: as in torch.

    State of each parameter: ``master``, ``exp_avg``, ``exp_avg_sq`` (float32, its shape), ``step``.
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

    def make_state(self, p: Tensor) -> None:
        """What a first step makes for ``p``: no step is taken yet."""
        master = p.detach().to(torch.float32, copy=True)
        moments = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}
        self.state[p] = {"step": 0, "master": master, **moments}

    @torch.no_grad()
    def step(self) -> None:
        """One step for every parameter that has a gradient."""
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
                grad = p.grad.float()
                master.mul_(1 - lr * group["weight_decay"])
                mean.lerp_(grad, 1 - beta1)
                square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                root = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
                master.addcdiv_(mean, root, value=-lr / (1 - beta1 ** state["step"]))
                p.copy_(master)
