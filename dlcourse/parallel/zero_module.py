"""A ZeRO model is a module whose gradients are in shards: what that changes for whoever uses it.

The optimizer updates shards, the model computes with parameters, and between the two lie
``sync_gradients`` and ``sync_parameters``. Whoever goes around them would change numbers that
nobody reads, without any error of torch's: hence the errors here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.parallel.expert_tensor import TensorExperts
from dlcourse.parallel.pipeline_stages import SomeLayers
from dlcourse.parallel.tensor_layers import ColumnParallelLinear, RowParallelLinear
from dlcourse.parallel.zero_flat_parameters import FlatParameters
from dlcourse.parallel.zero_same_numbers import refuse_different_states


class ShardedModule(nn.Module):
    """What the three stages do as any other module does it: clear, clip, load.

    Attributes:
        module: the model that was given.
        flats_of: for each unit its flat parameters, frozen ones as well.
        flats: the trainable ones, in the order in which backward finishes them.
    """

    module: nn.Module
    process_group: dist.ProcessGroup | None
    world_size: int
    flats_of: dict[nn.Module, list[FlatParameters]]
    flats: list[FlatParameters]

    def is_unsynced(self) -> bool:
        """Whether there are gradients since the last ``sync_gradients``."""
        return any(flat.has_gradients() for flat in self.flats)

    def before_step(self) -> None:
        """An optimizer that has some of the shards calls this.

        Raises:
            RuntimeError: it would make a step with gradients of this rank's batch alone.
        """
        if self.is_unsynced() and any(flat.shard.grad is not None for flat in self.flats):
            raise RuntimeError(
                f"step() of an optimizer before the gradients of the {type(self).__name__} are the "
                "mean over the ranks: call model.sync_gradients() after the last backward"
            )

    def start_gradients(self) -> None:
        """Clear what a step that was cut off has left."""
        for flat in self.flats:
            flat.drop_gradients()

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

        Sends one number.

        Returns:
            The norm of the whole gradient before, the same number in every rank.

        Raises:
            RuntimeError: gradients are not synced.
            ValueError: the module is cut over other ranks as well, whose norms this cannot see.
        """
        if self.is_unsynced():
            raise RuntimeError(
                "clip_grad_norm_() before sync_gradients(): the mean is not known yet"
            )
        refuse_clipping_parts(self.module)
        grads = [flat.shard.grad for flat in self.flats if flat.shard.grad is not None]
        wide = torch.promote_types(self.flats[0].full.dtype, torch.float32)
        square = torch.zeros((), dtype=wide.to_real(), device=self.flats[0].full.device)
        for grad in grads:
            square += torch.linalg.vector_norm(grad, dtype=wide).square()
        dist.all_reduce(square, group=self.process_group)
        norm = square.sqrt()
        for grad in grads:
            scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch does
            grad *= scale.to(grad.device)  # which may be the host
        return norm

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Refused: an optimizer needs ``shards``, and the module's own are in ``module``.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"{type(self).__name__}.parameters(): their gradients are in shards, so whoever clips "
            "or updates the parameters would change nothing. Give an optimizer model.shards, clip "
            "by model.clip_grad_norm_(max_norm), and to count or read them take "
            "model.module.parameters()"
        )

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch's; call it in all ranks, with the same numbers. Sends a checksum.

        Raises:
            ValueError: in all ranks, before anything is loaded, where their numbers differ.
        """
        if assign:
            raise ValueError(
                "assign=True would put other parameters in the place of those that the shards are "
                "parts of: leave it out, and the numbers are copied"
            )
        flats = [flat for flats in self.flats_of.values() for flat in flats]
        refuse_different_states(self.module, state_dict, flats, self.process_group)
        return super().load_state_dict(state_dict, strict)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ShardedModule:
        """Behind ``.to()``, ``.half()`` and ``.cuda()``: refused where it would move anything."""
        shard = self.flats[0].shard.detach()
        if fn(shard) is not shard:
            raise RuntimeError(
                f"the module of a {type(self).__name__} can be given another device or type before "
                "it is wrapped, not afterwards (for 16 bits there is dtype=torch.bfloat16)"
            )
        return super()._apply(fn, recurse)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Instead of ``copy.deepcopy`` and ``pickle``, which would tear parameters from shards."""
        raise RuntimeError(
            f"a {type(self).__name__} cannot be copied or pickled, since its shards are parts of "
            "other tensors: take model.state_dict() in all ranks and load it into a new model; "
            "deepcopy(model.module) is possible in stages 1 and 2"
        )


def refuse_clipping_parts(module: nn.Module) -> None:
    """Raises ValueError where the gradient's norm is not known from this module's ranks alone."""
    for name, part in module.named_modules():
        cut = ColumnParallelLinear | RowParallelLinear | TensorExperts | SomeLayers
        if isinstance(part, cut):
            raise ValueError(
                f"clip_grad_norm_() with {name or 'module'}, a {type(part).__name__}: other ranks "
                "hold other parts of its gradient, and each would clip by another number; train "
                "without clipping, or without ZeRO (clipping.clip_grad_norm_ knows these parts)"
            )
