"""Memory that other ranks write into, with a writer or a reader that is late on purpose."""

import mmap
import os
import tempfile
import time

import torch

from dlcourse.course.exercises import gathered

_PATIENCE = 10.0  # seconds that a late rank waits for the others at most


class Window:
    """``mine``: this rank's memory. ``put``: into another rank's. ``barrier``: all have come.

    size:   float32 numbers of each rank's memory.
    writer: a rank whose puts arrive only when all others wait in a barrier, or have left.
    reader: a rank that looks at its memory as late.
    """

    def __init__(self, size, writer=None, reader=None):
        import torch.distributed as dist

        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.sent, self.barriers = 0, 0
        self._writer, self._reader, self._size = writer, reader, size

    def __enter__(self):
        nbytes = 8 * self.world_size + 4 * self._size * self.world_size
        path = ""
        if self.rank == 0:
            file, path = tempfile.mkstemp(prefix="dlcourse-window-")
            os.truncate(path, nbytes)
            os.close(file)
        path = gathered(path)[0]
        with open(path, "r+b") as file:
            memory = mmap.mmap(file.fileno(), nbytes)
        gathered(True)  # all have it open
        if self.rank == 0:
            os.unlink(path)
        self._came = torch.frombuffer(memory, dtype=torch.int64, count=self.world_size)
        data = torch.frombuffer(memory, dtype=torch.float32, offset=8 * self.world_size)
        self._data = data.view(self.world_size, self._size)  # (p, size)
        return self

    def __exit__(self, *_):
        self.leave()
        gathered(True)  # nobody takes its memory away while others still write

    @property
    def mine(self):
        if self.rank == self._reader:
            self._wait_for_the_others()
        return self._data[self.rank]

    def put(self, to, at, values):
        if self.rank == self._writer:
            self._wait_for_the_others()
        values = values.detach().flatten()
        if not 0 <= at <= self._size - len(values):
            raise ValueError(f"put(at={at}) of {len(values)} values: memory has {self._size}")
        self._data[to][at : at + len(values)] = values
        self.sent += 4 * len(values) * (to != self.rank)

    def barrier(self):
        self.barriers += 1
        self._came[self.rank] += 1
        end = time.monotonic() + _PATIENCE
        while any(came < self.barriers for came in self._came.tolist()):
            if time.monotonic() > end:
                missing = [r for r, n in enumerate(self._came.tolist()) if n < self.barriers]
                raise RuntimeError(f"rank {self.rank} waits in barrier() for ranks {missing}")
            time.sleep(0.0005)

    def leave(self):
        """It will come to no barrier any more: nobody late waits for it."""
        self._came[self.rank] += 1_000_000

    def _wait_for_the_others(self):
        end, mine = time.monotonic() + _PATIENCE, self.barriers
        others = [r for r in range(self.world_size) if r != self.rank]
        while any(self._came[r] <= mine for r in others) and time.monotonic() < end:
            time.sleep(0.002)
