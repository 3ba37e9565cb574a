"""ZeRO-3 whose shards live in the host's memory: they come to the device to be gathered, and go.

    host      | my shard of block 0 | of 1 | of 2 | ...          | += gradient 2 | step of Adam
                    | copy                                          ^ copy
    device    |     v gather block 0 | compute 0 | free | ... | reduce-scatter 2, free

`ZeRO3` divides parameters by the number of ranks; this class takes that part off the device as
well. What is left there are the one or two units at work. The price is a link: each gather begins
with a copy of this rank's shard to the device, and each reduce-scatter ends with a copy of its
gradients to the host, where the optimizer finds both:

    model = OffloadedZeRO3(GPT().to("cuda"))
    optimizer = HostAdamW(model.shards)       # of dlcourse.training.by_hand; or any torch optimizer

DeepSpeed calls this `offload_param`, torch's FSDP2 `CPUOffloadPolicy`. `ParameterOffload` beside
this module does it in one process, with copies that overlap.

Where the device is a CPU, both memories are one: nothing is freed, and `moved_bytes` is what a link
would carry. Each copy is waited for; to hide them takes pinned memory and streams, as in
``local_host.py``. Not run on a GPU yet.

Source: Rajbhandari et al., "ZeRO-Infinity: Breaking the GPU Memory Wall for Extreme Scale Deep
Learning", SC 2021, section 5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dlcourse.collectives.compat import all_gather_single
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.parallel.zero_flat_parameters import FlatParameters

HOST = torch.device("cpu")


class HostFlatParameters(FlatParameters):
    """Flat parameters whose shard, with its gradient, is in the host's memory.

    Attributes:
        moved_bytes: of shards that came to the device, and of gradients that left it, so far.
    """

    moved_bytes = 0

    @torch.no_grad()
    def to_host(self) -> None:
        """Take the shard off the device, into memory of its own. Shape: (n,)."""
        self.shard.data = self.shard.detach().to(HOST, copy=True)

    @torch.no_grad()
    def start_gather(self) -> None:
        """Copy this rank's shard to its place in ``full``, and fill the rest from the others'."""
        mine = self.mine(self.full)
        mine.copy_(self.shard)
        self.moved_bytes += mine.nbytes
        self.gathering = all_gather_single(self.full, mine, self.process_group, async_op=True)

    @torch.no_grad()
    def finish_reduce(self) -> Tensor:
        """This rank's part of the summed gradients, on the host. Shape: (n,)."""
        mine = super().finish_reduce()
        self.moved_bytes += mine.nbytes
        return mine.to(HOST)


class OffloadedZeRO3(ZeRO3):
    """As `ZeRO3`, but shards and their gradients are in the host's memory between their uses.

    An optimizer of ``shards`` keeps its state beside them, so it works on the host, too.

    Args:
        module: on its device; what its units gather comes there.
        options: as those of ``ZeRO3``.

    Raises:
        ValueError: as ``ZeRO3``.
    """

    flat_class = HostFlatParameters

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        for flat in self._host_flats():
            flat.to_host()

    @property
    def moved_bytes(self) -> int:
        """Bytes between host and device in this rank since the beginning, both ways together.

        In a step, with n bytes in this rank's shards: 2 n come for forward and backward of each
        micro-batch and n of gradients go. A block in a checkpoint comes no more often: it is
        computed again while it is here for backward.
        """
        return sum(flat.moved_bytes for flat in self._host_flats())

    def _host_flats(self) -> list[HostFlatParameters]:
        """All of them, the frozen ones as well."""
        flats = [flat for some in self.flats_of.values() for flat in some]
        return [flat for flat in flats if isinstance(flat, HostFlatParameters)]
