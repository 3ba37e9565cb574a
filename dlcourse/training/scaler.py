"""Loss scaling by hand: keep the gradients of float16 inside the range of float16.

float16 knows no positive number below 6e-8, and gradients are small: many become 0. So the loss is
multiplied by a large number before backward. The chain rule multiplies every gradient with it, and
in float32 they are divided again. A number that is too large makes infinities instead; then the
step is skipped and the number halved. After a quiet stretch it is doubled: the largest scale that
works is found by trying, and followed as training changes.

    loss = scaler.scale(model(tokens, targets))
    loss.backward()
    scaler.step(optimizer)  # unscales first, if unscale_ was not called
    scaler.update()

``torch.amp.GradScaler`` has the same names and takes the same steps.

Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

SMALLEST = 2.0**-126  # a scale below float32's normal numbers would become 0, and its inverse inf


class LossScaler:
    """A dynamic loss scale.

    Args:
        init_scale: the first scale. No scale goes below 2**-126.
        growth_factor: multiplies it after ``growth_interval`` steps in a row without infinities.
        backoff_factor: multiplies it after a step with an infinity or a NaN.
        process_group: ranks that must skip together, because each sees other gradients (shards).
            Replicas need none: an all-reduce has spread the infinity already.

    Raises:
        ValueError: a factor or an interval that cannot work.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        check_factors(init_scale, growth_factor, backoff_factor, growth_interval)
        self._scale = max(float(init_scale), SMALLEST)
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval, self.process_group = growth_interval, process_group
        self.quiet_steps = 0
        self.found_inf: dict[int, bool] = {}  # of this step: each optimizer that was unscaled
        self.stepped: set[int] = set()  # of this step: each optimizer that has had its turn

    def get_scale(self) -> float:
        """The scale of the next loss."""
        return self._scale

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call ``backward()`` on."""
        # A tensor, not a number: a loss in float16 would stay so, and be infinite
        return loss * torch.tensor(self._scale, device=loss.device)

    @torch.no_grad()
    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale, and look for infinities: before clipping, say.

        Raises:
            ValueError: a gradient is in float16; dividing there would make it 0 after all.
            RuntimeError: it was called before in this step, for this optimizer.
        """
        if id(optimizer) in self.found_inf:
            raise RuntimeError(
                "unscale_() was called before in this step, for this optimizer: call update() first"
            )
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters if p.grad is not None]
        if any(grad.dtype == torch.float16 for grad in grads):
            raise ValueError(
                "the parameters are torch.float16, so gradients are, too: keep the parameters in "
                "float32 and let autocast convert them, or use bfloat16, which needs no scaler"
            )
        found = torch.zeros((), device=parameters[0].device)
        for grad in grads:
            grad.mul_(1 / self._scale)
            found += ~grad.isfinite().all()
        if self.process_group is not None:  # one rank's infinity is every rank's
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.process_group)
        self.found_inf[id(optimizer)] = bool(found)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Let the optimizer step, unless its gradients have infinities. Returns whether it did.

        Raises:
            RuntimeError: this optimizer has had its step since the last update.
        """
        if id(optimizer) in self.stepped:
            raise RuntimeError("step() was called before, for this optimizer: call update() first")
        if id(optimizer) not in self.found_inf:
            self.unscale_(optimizer)
        self.stepped.add(id(optimizer))
        if not self.found_inf[id(optimizer)]:
            optimizer.step()
        return not self.found_inf[id(optimizer)]

    def update(self) -> None:
        """The scale for the next step; call it once a step, after all optimizers.

        Raises:
            RuntimeError: there was no ``unscale_`` or ``step`` since the last update.
        """
        if not self.found_inf:
            raise RuntimeError("nothing to update: call step(optimizer) before update()")
        any_inf = any(self.found_inf.values())
        self.quiet_steps = 0 if any_inf else self.quiet_steps + 1
        if any_inf:
            self._scale = max(self._scale * self.backoff_factor, SMALLEST)
        elif self.quiet_steps == self.growth_interval:
            self.quiet_steps = 0
            if self._scale * self.growth_factor < 2.0**128:  # float32 ends there
                self._scale *= self.growth_factor
        self.found_inf, self.stepped = {}, set()


def check_factors(
    init_scale: float, growth_factor: float, backoff_factor: float, growth_interval: int
) -> None:
    for name, value, allowed in (
        ("init_scale", init_scale, 0 < init_scale < float("inf")),
        ("growth_factor", growth_factor, growth_factor > 1),
        ("backoff_factor", backoff_factor, 0 < backoff_factor < 1),
        ("growth_interval", growth_interval, growth_interval >= 1),
    ):
        if not allowed:
            raise ValueError(
                f"{name}={value} is not allowed: give init_scale above 0, growth_factor above 1, "
                "backoff_factor between 0 and 1, growth_interval from 1 on"
            )
