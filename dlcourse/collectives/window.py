"""The memory into which ranks put straight: its map, and how a rank waits for the others.

A window is one piece of shared memory, the same in all ranks of a group:

    stopped   a word of each rank: the number of a call that it has left in the middle
    control   words that say "ready": every one is written by one rank only, and only grows
    data      slots: every one is written by one rank and read by one

A rank that fails in a call leaves the others without what they wait for. So it says that it has
stopped; the others raise, and the next call begins with a new window.
"""

from __future__ import annotations

import ctypes
import os
import select
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.shared_memory import TOKEN, map_shared
from dlcourse.measure import own_calls

LINE = 64  # bytes of a cache line
_LOOK = 32  # turns between looks at the clock and at the others
_SPIN = 0.02  # seconds; who has waited longer sleeps between turns
Group = dist.ProcessGroup | None


class Window:
    """Shared memory of a group, and this rank's place in it. All ranks make it together.

    Args:
        control_words: words of 8 bytes.
        data_bytes: for all slots of all ranks.

    Attributes:
        words: all of it as int64; `control` is the number of its first control word.
        address: of the first data byte, in this process, a multiple of `LINE`; `start` is its
            distance from the first byte.
        peers: the other ranks' numbers, the next one first: else all would begin with rank 0.

    Raises:
        ValueError: in every rank, where they are not on one machine, or for lack of memory.
    """

    def __init__(self, group: Group, *, control_words: int, data_bytes: int) -> None:
        world = group or dist.group.WORLD
        assert world is not None
        self._group = ref(world)  # who keeps windows by group would else keep the group
        self.group_name = world.group_name
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.members = dist.get_process_group_ranks(world)
        self.peers = [(self.rank + k) % self.size for k in range(1, self.size)]
        self.control = TOKEN // 8 + self.size
        self.start = aligned(8 * (self.control + control_words))
        instead = "Use torch.distributed.all_to_all_single instead"
        self.memory = map_shared(self.start + data_bytes, group, instead=instead)
        self.words = memoryview(self.memory).cast("q")
        first = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.address = first + self.start
        self._stopped = self.words[TOKEN // 8 : self.control]
        # A lock that nobody else has, and this rank always: see `fence`
        lock = threading.Lock()
        lock.acquire()
        self._release, self._acquire = lock.release, lock.acquire
        self._turns, self._since, self._looked = 0, 0.0, 0.0
        self._timeout_s = _timeout(world)
        self._processes = _Processes(world)
        own_calls.join(world.group_name, self.members)

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Whose window it is; None once the group is gone."""
        return self._group()

    def fence(self) -> None:
        """Loads and stores before it happen before all that come after it. 0.1 microseconds.

        To release and to acquire a lock is, in CPython on Linux, ``sem_post`` and ``sem_wait``,
        which synchronize memory (POSIX.1-2017, Base Definitions 4.12). In machine code: a
        read-modify-write with release, then one with acquire, of the same word. On x86 either
        is a locked instruction, which no load and no store passes. On Arm nothing before
        the first can come after it, nothing after the second before it, and the two keep
        their order.
        """
        self._release()
        self._acquire()

    # ------------------------------------------------------------------ a call

    def begin(
        self, op: str, tensors: Sequence[Tensor], nbytes: int, collective: str = "all_to_all"
    ) -> None:
        """A call begins, which sends ``nbytes`` of the first of the tensors. Its work is done
        inside a ``with window:``, whose end says that the call has ended, well or not."""
        self.call = own_calls.begin(op, self.group_name, tensors, nbytes, collective)
        self._turns = 0

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stopped[self.rank] = self.call.seq  # nobody can use the window any more
        own_calls.end(self.call)

    @property
    def usable(self) -> bool:
        """Whether no rank has left an earlier call, so that the next can be made with it.

        Who sees that one has left the *next* call makes that call, too, to leave it as well: so
        all ranks make a new window at the same call.
        """
        stopped = self._stopped.tolist()
        if not any(stopped):
            return True
        seq = own_calls.next_seq(self.group_name)
        return not any(0 < call < seq for call in stopped)

    # ------------------------------------------------------------------ waiting

    def pause(self, missing: Sequence[int]) -> None:
        """Let another process have the core, once; raise where waiting is in vain.

        Args:
            missing: numbers in the group of the ranks that this one waits for.

        Raises:
            RuntimeError: one has ended, one has left its call, or the time of the group is up.
        """
        os.sched_yield()
        self._turns += 1
        if self._turns % _LOOK:
            return
        now = time.monotonic()
        if self._turns == _LOOK:
            self._since = self._looked = now
            own_calls.waits(self.call)
        if left := [rank for rank, stopped in enumerate(self._stopped.tolist()) if stopped]:
            raise RuntimeError(f"{self._where()} Connection closed: {self.names(left)} left a call")
        if now > self._since + _SPIN:
            time.sleep(0.0002)
        if now > self._looked + _SPIN:
            self._looked = now
            if dead := self._processes.ended():
                raise RuntimeError(f"{self._where()} Connection lost: {self.names(dead)} ended")
        if now > self._since + self._timeout_s:
            raise RuntimeError(
                f"{self._where()} Timed out after {self._timeout_s:g} s: "
                f"{self.names(missing)} did not come"
            )

    def _where(self) -> str:
        return f"{self.names([self.rank])} in {self.call.op} #{self.call.seq}:"

    def names(self, numbers: Sequence[int]) -> str:
        """Ranks in words, by their numbers in the world."""
        ranks = ", ".join(str(self.members[number]) for number in sorted(numbers))
        return f"rank{'s' if len(numbers) > 1 else ''} {ranks}"


class _Processes:
    """The other ranks' processes: which have ended, however they did."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        numbers = torch.zeros(group.size(), dtype=torch.int64)
        numbers[group.rank()] = os.getpid()
        dist.all_reduce(numbers, group=group)
        self._ranks: dict[int, int] = {}
        self._poll = select.poll()
        for rank, process in enumerate(numbers.tolist()):
            if rank != group.rank():
                descriptor = os.pidfd_open(process)
                self._ranks[descriptor] = rank
                self._poll.register(descriptor, select.POLLIN)

    def ended(self) -> list[int]:
        """Their numbers in the group."""
        return [self._ranks[descriptor] for descriptor, _ in self._poll.poll(0)]

    def __del__(self) -> None:
        for descriptor in self._ranks:
            os.close(descriptor)


def _timeout(group: dist.ProcessGroup) -> float:
    """Seconds that this group's collectives may take."""
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def aligned(nbytes: int) -> int:
    """The next multiple of a cache line."""
    return -(-nbytes // LINE) * LINE
