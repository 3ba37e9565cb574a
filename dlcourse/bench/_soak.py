"""Very many random dispatches between ranks that are stopped at random: none lost, none torn.

Every message is a piece of a table of random bits that all ranks have, from a place that follows
from the call's number and the sender. So a receiver knows all bits that must come. Ranks are
disturbed in two ways: at the fences, that is between the data and its flag, they now and then
yield or sleep; and from outside they are stopped by SIGSTOP wherever they are, and go on a little
later.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dlcourse import Ranks

BLOCK = 5000  # dispatches between two lines of progress
CAPACITY, WIDTH = 12, 8  # of the low-latency calls: rows from rank to rank, and elements in one
LARGE = 20_000  # rows of the largest all-to-all: several chunks for a rank
TABLE = 1 << 21  # elements


def soak(
    ranks: Ranks, dispatches: int, say: Callable[[str], None] = print, *, seed: int = 0
) -> int:
    """Run so many dispatches; returns how many messages were not what was sent.

    Args:
        ranks: a pool.
        seed: another one draws other dispatches, and other moments to stop a rank.
        say: is told how far it is.
    """
    processes, done, wrong, start = ranks.run(os.getpid), 0, 0, time.monotonic()
    with _stopping(processes, seed):
        while done < dispatches:
            some = min(BLOCK, dispatches - done)
            wrong += sum(ranks.run(soak_block, done, some, seed))
            done += some
            say(f"{done:,} dispatches in {time.monotonic() - start:.0f} s, {wrong} messages wrong")
    return wrong


@contextmanager
def _stopping(processes: list[int], seed: int) -> Iterator[None]:
    """Meanwhile one process after the other is stopped for up to 4 ms."""
    over, chance = threading.Event(), random.Random(seed)

    def stop() -> None:
        while not over.wait(chance.uniform(0, 0.03)):
            process = chance.choice(processes)
            try:
                os.kill(process, signal.SIGSTOP)
                time.sleep(chance.uniform(0, 0.004))
            finally:
                os.kill(process, signal.SIGCONT)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


_state: dict[str, Any] = {}


def soak_block(first: int, dispatches: int, seed: int = 0) -> int:
    """In every rank: dispatches number ``first`` to ``first + dispatches``; messages wrong."""
    import torch
    import torch.distributed as dist

    from dlcourse.collectives.low_latency import LowLatency
    from dlcourse.collectives.mailboxes import mailboxes_of
    from dlcourse.collectives.places import ready_ways

    if _state.get("group") is not dist.group.WORLD:
        table = torch.randint(
            -(2**31), 2**31, (TABLE,), generator=torch.Generator().manual_seed(0)
        ).int()
        low = [LowLatency(CAPACITY, WIDTH, torch.int32, ready=r) for r in ready_ways()]
        _state.update(group=dist.group.WORLD, table=table, low=low)
        for window in [mailboxes_of(None), *(x.places for x in low)]:
            window._release = _disturbed(window._release, 1000 * seed + dist.get_rank())
    chance = random.Random(f"{seed}.{first}")  # the same in all ranks
    wrong = done = 0
    while done < dispatches:
        kind = chance.random()
        if kind < 0.2:
            wrong += _all_to_all(first + done, chance)
            done += 1
        else:
            wrong += _there_and_back(
                first + done, chance, _state["low"][(kind < 0.6) % len(_state["low"])]
            )
            done += 2
    return wrong


def _disturbed(release: Callable[[], None], seed: int) -> Callable[[], None]:
    chance = random.Random(seed)

    def disturbed() -> None:
        x = chance.random()
        if x < 0.01:
            time.sleep(x / 50)
        elif x < 0.05:
            os.sched_yield()
        release()

    return disturbed


def _rows(call: int, rank: int, n: int) -> Any:
    """What a rank sends in a call, (n, WIDTH)."""
    start = (call * 7919 + rank * 104_729) * 13 % (TABLE - n * WIDTH)
    return _state["table"][start : start + n * WIDTH].view(n, WIDTH)


def _counts(chance: random.Random, most: int) -> list[list[int]]:
    """Rows from each rank to each; often none."""
    import torch.distributed as dist

    p = dist.get_world_size()
    return [[chance.randrange(most + 1) * (chance.random() < 0.8) for _ in range(p)]
            for _ in range(p)]  # fmt: skip


def _expected(call: int, source: int, counts: list[int], to: int) -> Any:
    before = sum(counts[:to])
    return _rows(call, source, sum(counts))[before : before + counts[to]]


def _all_to_all(call: int, chance: random.Random) -> int:
    import torch
    import torch.distributed as dist

    from dlcourse.collectives.one_sided import all_to_all

    counts = _counts(chance, LARGE if chance.random() < 0.01 else 40)
    rank, came = dist.get_rank(), [row[dist.get_rank()] for row in counts]
    output = torch.empty(sum(came), WIDTH, dtype=torch.int32)
    all_to_all(output, _rows(call, rank, sum(counts[rank])), came, counts[rank])
    parts = output.split(came)
    return sum(
        not torch.equal(part, _expected(call, source, counts[source], rank))
        for source, part in enumerate(parts)
    )


def _there_and_back(call: int, chance: random.Random, low: Any) -> int:
    import torch
    import torch.distributed as dist

    counts = _counts(chance, CAPACITY)
    rank = dist.get_rank()
    sent = _rows(call, rank, sum(counts[rank]))
    inbox, came = low.dispatch(sent, counts[rank])
    wrong = sum(
        not torch.equal(inbox[source, :n], _expected(call, source, counts[source], rank))
        for source, n in enumerate(came)
    )
    wrong += came != [row[rank] for row in counts]
    return wrong + (not torch.equal(low.combine(inbox), sent))
