"""ZeRO stage 1: data parallelism in which no two ranks keep the same optimizer state.

Bytes per parameter with 16-bit training and Adam, on N ranks (the paper's table):

                        parameters  gradients  optimizer state     together
    data parallel       2           2          12                  16
    stage 1 (here)      2           2          12 / N              4 + 12 / N
    stage 2 (zero2.py)  2           2 / N      12 / N              2 + 14 / N
    stage 3 (zero3.py)  2 / N       2 / N      12 / N              16 / N

Each rank's optimizer is given its shards alone, so it makes state for them alone:

    model = ZeRO1(GPT())
    optimizer = torch.optim.AdamW(model.shards)
    model(tokens, targets).backward()
    model.sync_gradients()          # from here on, shard.grad is the mean over all ranks
    optimizer.step()                # each rank updates its shards ...
    model.sync_parameters()         # ... and everybody gets everybody's

As in one process, gradients add up over backwards, ``zero_grad`` (of the optimizer or the model)
clears them, and ``sync_gradients`` is what ends a step: the backward after it starts anew.

An optimizer that treats all elements alike (SGD, AdamW) gives the numbers of one process. One that
looks at whole matrices (LAMB, Muon), or a weight decay that skips biases, does not see them here.
A unit that no rank has used gets no gradient and no step; a parameter that no rank has used, in a
unit that was used, has a gradient of zero, so weight decay and momentum go on. Buffers (the means
of BatchNorm) stay each rank's own. ``optimizer.state_dict()`` is of this rank's shards alone: see
``zero_checkpoint.py``.

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", SC 2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import increment_version

from dlcourse.corpus import Corpus, sequences_per_rank
from dlcourse.parallel.hooks import weakly
from dlcourse.parallel.loop import mean_over_ranks, run_steps
from dlcourse.parallel.replicas import broadcast_module, sync_gradients
from dlcourse.parallel.zero_flat_parameters import FlatParameters, by_type, split_into_units
from dlcourse.parallel.zero_module import ShardedModule
from dlcourse.parallel.zero_owners import check_parameters, claim, refuse_second_wrapper


class ZeRO1(ShardedModule):
    """Every rank has all parameters and all gradients, and the optimizer state of its shards.

    Where data parallelism has an all-reduce of the gradients, this has its first half before the
    optimizer's step (reduce-scatter), and its second half after it (all-gather, of parameters).

    Args:
        module: the model; after this call it equals rank 0's. Freeze parameters before.
        process_group: the ranks that share the batch; all of them by default.
        dtype: keep parameters and gradients in this type, for example ``torch.bfloat16``.
        units: submodules that are sent as one message each, see ``split_into_units``.
        groups: parameters that only some of these ranks have the same of, and which; see
            ``expert_zero.py``. They must be equal in those already.

    Raises:
        ValueError: nothing to train, a type that cannot be trained in, units that overlap, or a
            module that is in a wrapper already.
    """

    flat_class = FlatParameters

    def __init__(
        self,
        module: nn.Module,
        *,
        process_group: dist.ProcessGroup | None = None,
        dtype: torch.dtype | None = None,
        units: Sequence[nn.Module] | None = None,
        groups: Mapping[nn.Parameter, dist.ProcessGroup | None] | None = None,
    ) -> None:
        super().__init__()
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ValueError("module has no trainable parameter: set requires_grad before")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype} cannot hold gradients: give a floating-point type")
        refuse_second_wrapper(module)
        parameters_of = split_into_units(module, units)
        self.module, self.process_group = module, process_group
        self.world_size = dist.get_world_size(process_group)
        if groups is None:
            broadcast_module(module, process_group=process_group)
        group_of = {p: (groups or {}).get(p, process_group) for p in module.parameters()}
        self.flats_of = {
            unit: [
                self.flat_class(some, process_group=group_of[some[0]], dtype=dtype)
                for some in by_type(parameters, group_of)
            ]
            for unit, parameters in parameters_of.items()
        }
        # Last layers first, the rest of the model at the end: the order in which backward is done
        units_backwards = [*reversed([*parameters_of][1:]), module]
        self.flats = [
            flat for u in units_backwards for flat in self.flats_of[u] if flat.shard.requires_grad
        ]
        self.flat_of = {p: flat for flat in self.flats for p in flat.parameters}
        for i, flat in enumerate(self.flats):
            for parameter in flat.parameters:
                parameter.register_hook(partial(weakly(self.before_gradient), i))
                parameter.register_post_accumulate_grad_hook(weakly(self.gradient_is_ready))
        claim(self)

    @property
    def shards(self) -> list[nn.Parameter]:
        """What this rank's optimizer has to update."""
        return [flat.shard for flat in self.flats]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        check_parameters(self)
        if torch.is_grad_enabled():
            self.make_room()
        return self.module(*args, **kwargs)

    def make_room(self) -> None:
        """Memory for the gradients, side by side, where autograd is to add them up."""
        for flat in self.flats:
            flat.make_room()

    def before_gradient(self, i: int, _: Tensor) -> None:
        """Backward calls this before it adds to a gradient of the i-th of ``flats``."""
        self.flats[i].drop_if_cleared()

    def gradient_is_ready(self, parameter: nn.Parameter) -> None:
        """Backward calls this for each parameter, last layers first."""
        flat = self.flat_of[parameter]
        flat.keep(parameter)
        if flat.seen is None:
            flat.shard.grad = flat.mine(flat.grad).data  # so that optimizer.zero_grad() is seen
            flat.watch()

    @torch.no_grad()
    def sync_gradients(self) -> None:
        """Make each shard's gradient the mean over the ranks of all backwards since last time."""
        sync_gradients(self.module)  # sequence parallelism has some of its own
        for flat in self.flats:
            flat.drop_if_cleared()
        used = self.in_any_rank(flat.has_gradients() for flat in self.flats)
        used_flats = [flat for flat, is_used in zip(self.flats, used, strict=True) if is_used]
        for flat in used_flats:
            for parameter in flat.parameters:
                flat.keep(parameter)
            flat.drop_gradients()
            flat.grad /= self.world_size
            flat.start_reduce()
        for flat in self.flats if used_flats else ():
            flat.shard.grad = flat.finish_reduce() if flat in used_flats else None

    def in_any_rank(self, mine: Iterable[bool]) -> list[bool]:
        """For each of ``mine``, whether it is true in this rank or in another."""
        flags = [int(flag) for flag in mine]
        row = torch.zeros(len(flags), dtype=torch.int64, device=self.flats[0].full.device)
        row += torch.tensor(flags, device=row.device)  # not alone: one known number is sent twice
        dist.all_reduce(row, op=dist.ReduceOp.MAX, group=self.process_group)
        if isinstance(row, FakeTensor):  # has no numbers
            return [bool(flag) for flag in flags]
        return row.bool().tolist()

    def sync_parameters(self) -> None:
        """After the optimizer's step: collect the other ranks' new shards."""
        for flat in self.flats:
            flat.start_gather()
        for flat in self.flats:
            flat.finish_gather()
        increment_version(self.flat_of)  # a backward through an older forward raises, as always


def train(
    model: ZeRO1,
    corpus: Corpus,
    *,
    steps: int,
    batch_size: int = 16,
    block: int = 128,
    accumulate: int = 1,
    lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[float]:
    """Train in every rank, on ``batch_size`` sequences a step over all ranks together.

    Args:
        model: a ``GPT`` in one of the classes of stage 1, 2 or 3.
        accumulate: split a rank's part of the batch into this many micro-batches.
        optimizer: over ``model.shards``; AdamW with learning rate ``lr`` by default.

    Returns:
        The loss of each step over the whole batch: the same numbers in every rank.

    Raises:
        ValueError: ranks and micro-batches do not divide ``batch_size``.
    """
    rank, world_size = dist.get_rank(model.process_group), model.world_size
    micro_batch = sequences_per_rank(batch_size, world_size=world_size, accumulate=accumulate)
    device = model.flats[0].full.device  # a shard may be in the host's memory
    optimizer = optimizer or torch.optim.AdamW(model.shards, lr=lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64, device=device)
        parts = zip(tokens_BT.chunk(accumulate), targets_BT.chunk(accumulate), strict=True)
        for x_BT, y_BT in parts:
            loss = model(x_BT, y_BT) / accumulate
            loss.backward()
            total += loss.detach()
        model.sync_gradients()
        optimizer.step()
        model.sync_parameters()
        return total

    losses = run_steps(
        step,
        corpus,
        steps=steps,
        device=device,
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
        block=block,
    )
    return mean_over_ranks(losses, device=device, process_group=model.process_group)
