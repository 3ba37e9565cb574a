"""`low_latency` between GPUs: torch's symmetric memory in place of a window.

``symm_mem.empty`` and ``rendezvous`` make a tensor that every rank of a group can reach at every
other: over NVLink by the GPU's own loads and stores, or through NVSHMEM. ``get_buffer(k)`` is rank
k's, as a tensor here; ``put_signal`` and ``wait_signal`` are kernels in the stream, which raise
and await a flag with the order that `one_sided` needs (a release and an acquire over the system).
So Python waits nowhere but for the counts.

The map, the two places in turn and the reason why they suffice are those of `low_latency`.

Written after torch 2.13's ``torch.distributed._symmetric_memory``, which is private and may change.
Not run: it needs GPUs that reach each other, and this course is made on a machine without.
Shape suffixes as in `low_latency`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class SymmetricLowLatency:
    """`LowLatency` of CUDA tensors, one GPU a rank.

    Args:
        capacity: rows from one rank to one other in a call, at most.
        width: elements of a row.
        dtype: of the elements.
        group: the ranks that take part; the default group if None.

    Raises:
        ValueError: there is no CUDA device.
    """

    def __init__(
        self,
        capacity: int,
        width: int,
        dtype: torch.dtype = torch.bfloat16,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if not torch.cuda.is_available():
            raise ValueError(
                "there is no CUDA device, and torch has no symmetric memory of the CPU. "
                "Use LowLatency, which shares the CPU's memory"
            )
        import torch.distributed._symmetric_memory as symm_mem

        world = group or dist.group.WORLD
        assert world is not None
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.capacity, self.width, self.dtype = capacity, width, dtype
        device, shape = torch.device("cuda", torch.cuda.current_device()), (2, self.size)
        self.rows = symm_mem.empty((*shape, capacity, width), dtype=dtype, device=device)
        self.counts = symm_mem.empty(shape, dtype=torch.int64, device=device)
        self.to_rows = symm_mem.rendezvous(self.rows, world)
        self.to_counts = symm_mem.rendezvous(self.counts, world)
        self.calls = 0

    def dispatch(self, x_MC: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
        """As `LowLatency.dispatch`: rows that came, (P, K, C), and how many from each rank."""
        if max(counts) > self.capacity or sum(counts) != len(x_MC) or len(counts) != self.size:
            raise ValueError(
                f"counts is {list(counts)} for {len(x_MC)} rows and capacity={self.capacity}: give "
                f"{self.size} numbers up to the capacity, which add up to the rows"
            )
        self.sent = list(counts)
        inbox_PKC, self.came = self._exchange(list(x_MC.split(self.sent)))
        return inbox_PKC, self.came

    def combine(self, y_PKC: Tensor) -> Tensor:
        """As `LowLatency.combine`: every row back to where it came from, (M, C)."""
        inbox_PKC, back = self._exchange([y_PKC[k, :n] for k, n in enumerate(self.came)])
        return torch.cat([inbox_PKC[k, :n] for k, n in enumerate(back)])

    def _exchange(self, parts: list[Tensor]) -> tuple[Tensor, list[int]]:
        self.calls += 1
        parity = self.calls % 2
        place = parity * self.size + self.rank
        for step in range(self.size):
            to = (self.rank + step) % self.size
            rows = self.to_rows.get_buffer(
                to, (self.capacity, self.width), self.dtype, place * self.capacity * self.width
            )
            rows[: len(parts[to])].copy_(parts[to])
            self.to_counts.get_buffer(to, (1,), torch.int64, place).fill_(len(parts[to]))
            if to != self.rank:
                self.to_rows.put_signal(to, channel=parity)
        for step in range(1, self.size):
            self.to_rows.wait_signal((self.rank + step) % self.size, channel=parity)
        return self.rows[parity], self.counts[parity].tolist()
