"""To be one rank of many without the others: torch's fake process group, and what a process took.

The group says that there are ``world_size`` ranks and answers every collective at once. With fake
tensors (shapes, no numbers) bytes and FLOPs of a rank are exact; times mean nothing.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fake_process_group(rank: int, world_size: int) -> Iterator[None]:
    """This process is ``rank``. It must not have a process group."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def peak_rss_bytes() -> int:
    """The most memory that this process has had so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
