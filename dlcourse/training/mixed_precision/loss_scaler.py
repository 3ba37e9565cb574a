"""Loss scaling by hand: keep the gradients of float16 inside the range of float16.

float16 knows no positive number below 6e-8, and gradients are small: many become 0. So the loss is
multiplied by a large number before backward. The chain rule multiplies every gradient with it, and
in float32 they are divided again. A number that is too large makes infinities instead; then the
step is skipped and the number halved. After a quiet stretch it is doubled: the largest scale that
works is found by trying, and followed as training changes. It stays where float32 knows both it and
one divided by it: 2**-126 to 2**127.

    loss = scaler.scale(model(tokens, targets))
    loss.backward()
    scaler.step(optimizer)  # unscales first, if unscale_ was not called
    scaler.update()

``torch.amp.GradScaler`` has the same names and takes the same steps. Several optimizers may share a
scaler: each one skips for its own infinities, and ``update`` is called once, after all.

Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from dlcourse.training.mixed_precision.loss_scaler_checks import check_alone

SMALLEST = 2.0**-126
LARGEST = 2.0**127


class LossScaler:
    """A dynamic loss scale.

    Args:
        init_scale: the first scale.
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
        self._scale = min(max(SMALLEST, float(init_scale)), LARGEST)
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval, self.process_group = growth_interval, process_group
        self.quiet_steps = 0
        self.forget()

    def forget(self) -> None:
        """Of this step: which optimizers have been unscaled, with what gradients, and stepped."""
        self.found_inf: dict[Optimizer, bool] = {}
        self.unscaled: dict[Optimizer, list[Tensor]] = {}
        self.outdated: set[Optimizer] = set()
        self.stepped: set[Optimizer] = set()

    def get_scale(self) -> float:
        """The scale of the next loss."""
        return self._scale

    def scale(self, loss: Any) -> Any:
        """The loss to call ``backward()`` on; a list or tuple of losses gives one of the same."""
        if isinstance(loss, list | tuple):
            return type(loss)(map(self.scale, loss))
        self.outdated |= set(self.unscaled)  # if this loss makes gradients for them, too
        # A tensor, not a number: a loss in float16 would stay so, and be infinite
        return loss * torch.tensor(self._scale, device=loss.device)

    @torch.no_grad()
    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, and look for infinities: before clipping, say.

        Raises:
            ValueError: a gradient is in float16; dividing there would make it 0 after all.
                Or it updates parts of a model, and ``process_group`` is missing.
            RuntimeError: it was called before in this step.
        """
        if self.process_group is None:
            check_alone(optimizer)
        if optimizer in self.found_inf:
            raise RuntimeError("unscale_() was called before in this step: call update() first")
        grads = grads_of(optimizer)
        if any(grad.dtype == torch.float16 for grad in grads):
            raise ValueError(
                "the parameters are torch.float16, so gradients are, too: keep the parameters in "
                "float32 and let autocast convert them, or use bfloat16, which needs no scaler"
            )
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found = torch.zeros((), device=parameters[0].device if parameters else "cpu")
        for grad in grads:
            grad.mul_(1 / self._scale)
            numbers = grad._values() if grad.is_sparse else grad
            found += (~numbers.isfinite().all()).to(found.device)
        if self.process_group is not None:  # one rank's infinity is every rank's
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.process_group)
        self.found_inf[optimizer], self.unscaled[optimizer] = bool(found), grads

    def step(self, optimizer: Optimizer) -> bool:
        """Let the optimizer step, unless there are infinities. Returns whether it did.

        Raises:
            RuntimeError: it was called before in this step; or the gradients are of another step
                than those that were unscaled.
        """
        if optimizer in self.stepped:
            raise RuntimeError("step() was called before in this step: call update() first")
        if optimizer not in self.found_inf:
            self.unscale_(optimizer)
        unscaled, now = self.unscaled.pop(optimizer), grads_of(optimizer)
        if optimizer in self.outdated and [*map(id, now)] != [*map(id, unscaled)]:
            raise RuntimeError(
                "these gradients were made after unscale_(), so they are still scaled; a step was "
                "left without update(): call update() now, and begin the step again"
            )
        self.stepped.add(optimizer)
        if not self.found_inf[optimizer]:
            optimizer.step()
        return not self.found_inf[optimizer]

    def update(self) -> None:
        """The scale for the next step; call it once a step, after all optimizers.

        Raises:
            RuntimeError: there was no ``unscale_`` or ``step`` since the last update.
        """
        if not self.found_inf:
            raise RuntimeError("nothing to update: call step(optimizer) before update()")
        infinite = any(self.found_inf.values())
        self.quiet_steps = 0 if infinite else self.quiet_steps + 1
        if infinite:
            self._scale = max(SMALLEST, self._scale * self.backoff_factor)
        elif self.quiet_steps >= self.growth_interval:
            self.quiet_steps = 0
            if self._scale * self.growth_factor <= LARGEST:
                self._scale *= self.growth_factor
        self.forget()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, under the names of ``torch.amp.GradScaler``."""
        return {
            "scale": self._scale,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": self.quiet_steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the scaler did that returned ``state_dict``, ours or torch's.

        Raises:
            ValueError: a name is missing, or a value cannot work.
        """
        if missing := set(self.state_dict()) - set(state_dict):
            raise ValueError(
                f"state_dict lacks {', '.join(sorted(missing))}: give what a scaler's state_dict() "
                "returned"
            )
        scale, grow, back, interval, quiet = (state_dict[name] for name in self.state_dict())
        check_factors(scale, grow, back, interval)
        self._scale = min(max(SMALLEST, float(scale)), LARGEST)
        self.growth_factor, self.backoff_factor = grow, back
        self.growth_interval, self.quiet_steps = interval, quiet
        self.forget()


def grads_of(optimizer: Optimizer) -> list[Tensor]:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [p.grad for p in parameters if p.grad is not None]


def check_factors(
    init_scale: float, growth_factor: float, backoff_factor: float, growth_interval: int
) -> None:
    for name, value, allowed in (
        ("init_scale", init_scale, 0 < init_scale < float("inf")),
        ("growth_factor", growth_factor, growth_factor > 1),
        ("backoff_factor", backoff_factor, 0 < backoff_factor < 1),
        ("growth_interval", growth_interval, growth_interval >= 1 and growth_interval % 1 == 0),
    ):
        if not allowed:
            raise ValueError(
                f"{name}={value} is not allowed: give init_scale above 0, growth_factor above 1, "
                "backoff_factor between 0 and 1, growth_interval from 1 on"
            )
