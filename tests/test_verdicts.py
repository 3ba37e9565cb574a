"""Verdicts on ranks that do not end: a right cell is never refused, a true deadlock is named.

A rank may be slow for any reason (in `new_group`, in the kernel, in C code that holds Python's
lock): none of that is a deadlock. The stress below looks at the ranks a hundred times as often as
a notebook does, so that every unlucky moment is met.
"""

from __future__ import annotations

import os
import random
import signal
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest

from dlcourse.ranks import RankError, Ranks, RanksInterrupted
from dlcourse.ranks.notebook import running_cell
from dlcourse.ranks.notebook.verdict import message
from dlcourse.words.strings import both

SLOW = 3.5  # seconds: three looks, so that two of them find the rank in the middle of it


@pytest.fixture(scope="module")
def ranks():
    with Ranks(4, default=False) as pool:
        yield pool


def run(pool: Ranks, source: str):
    return pool.cell(textwrap.dedent(source), record=False)


def refused(pool: Ranks, source: str) -> str:
    with pytest.raises(RankError) as caught:
        run(pool, source)
    return str(caught.value)


# -- slow, and right ------------------------------------------------------------------------------

RIGHT = {
    "new_group": """
        import time
        c10d = dist.distributed_c10d
        make = c10d.ProcessGroupGloo
        if rank == 1:  # stands for a socket or a thread that the kernel is slow to make
            class Slow(make):
                def __init__(self, *a, **k):
                    time.sleep(SLOW)
                    super().__init__(*a, **k)
            c10d.ProcessGroupGloo = Slow
        try:
            dist.new_group([rank], use_local_synchronization=True)
        finally:
            c10d.ProcessGroupGloo = make
        dist.all_reduce(torch.ones(1))
    """,
    "C code that holds Python's lock": """
        import time
        dist.barrier()
        end = time.time() + SLOW
        while rank == 0 and time.time() < end:
            sum(range(8 * 10**7))
        dist.barrier()
    """,
    "scatter, where only one rank brings a tensor": """
        import time
        x = torch.zeros(2)
        if rank == 2:
            time.sleep(SLOW)
        dist.scatter(x, [torch.ones(2)] * 4 if rank == 0 else None, 0)
    """,
    "all-to-all of uneven sizes": """
        import time
        if rank == 2:
            time.sleep(SLOW)
        mine = torch.ones(4 * (rank + 1))
        out = torch.empty(10)
        dist.all_to_all_single(out, mine, [1, 2, 3, 4], [rank + 1] * 4)
    """,
    "a message that comes late": """
        import time
        x = torch.ones(1)
        if rank == 0:
            dist.recv(x, 3)
        elif rank == 3:
            time.sleep(SLOW)
            dist.send(x, 0)
        elif rank == 1:
            dist.recv(x)
        else:
            time.sleep(SLOW)
            dist.isend(x, 1).wait()
    """,
    "a message under way, and a rank that has left": """
        import time
        x = torch.ones(1)
        if rank == 0:
            kept = dist.isend(x, 1)
        elif rank == 1:
            time.sleep(SLOW)
            dist.recv(x, 0)
    """,
    "a collective begun, and computing": """
        import time
        x = torch.ones(1)
        if rank < 2:
            work = dist.all_reduce(x, async_op=True)
            time.sleep(SLOW)
            dist.send(x, 2 + rank)
            work.wait()
        else:
            dist.recv(torch.ones(1), rank - 2)
            dist.all_reduce(x)
    """,
    "two groups, the one after the other": """
        import time
        x = torch.ones(1)
        pairs = [dist.new_group([0, 1]), dist.new_group([2, 3]), dist.new_group([1, 2])]
        if rank == 0:
            time.sleep(SLOW)
        if rank < 2:
            dist.all_reduce(x, group=pairs[0])
        if rank in (1, 2):
            dist.all_reduce(x, group=pairs[2])
        if rank > 1:
            dist.all_reduce(x, group=pairs[1])
        dist.barrier()
    """,
    "a thread that sends": """
        import threading, time
        x, y = torch.ones(1), torch.ones(1)
        def later():
            time.sleep(SLOW)
            dist.send(y, (rank + 1) % 4)
        thread = threading.Thread(target=later)
        thread.start()
        dist.recv(x, (rank - 1) % 4)
        thread.join()
    """,
}


@pytest.mark.parametrize("case", RIGHT)
def test_a_slow_rank_is_no_deadlock(ranks, case):
    run(ranks, RIGHT[case].replace("SLOW", str(SLOW)))
    run(ranks, "dist.barrier()")


def mixed_cell(seed: int) -> str:
    """Collectives, groups and messages in an order of chance, with pauses in single ranks."""
    chance = random.Random(seed)
    lines = ["import time", "x = torch.ones(8)"]
    for _ in range(chance.randint(3, 6)):
        if chance.random() < 0.6:
            who = chance.randrange(4)
            lines.append(f"if rank == {who}: time.sleep({chance.uniform(0, 0.15):.3f})")
        one = chance.choice(
            [
                "dist.all_reduce(x)",
                "dist.barrier()",
                f"dist.broadcast(x, {chance.randrange(4)})",
                "w = dist.all_reduce(x, async_op=True); y = x.new_ones(3).sum(); w.wait()",
                "dist.all_gather_object([None] * 4, rank)",
                "dist.scatter(x[:2], [torch.ones(2)] * 4 if rank == 0 else None, 0)",
                "dist.all_to_all_single(torch.empty(10), torch.ones(4 * (rank + 1)), "
                "[1, 2, 3, 4], [rank + 1] * 4)",
                "g = dist.new_group([0, 2, 3]); rank == 1 or dist.all_reduce(x, group=g); "
                "rank == 1 or dist.destroy_process_group(g)",
                "dist.send(x, rank + 1) if rank % 2 == 0 else dist.recv(x, rank - 1)",
                "dist.send(x, 0) if rank == 3 else (dist.recv(x) if rank == 0 else None)",
                "ws = [dist.isend(x, (rank + 1) % 4), dist.irecv(x.clone(), (rank - 1) % 4)]; "
                "[w.wait() for w in ws]",
            ]
        )
        lines.append(one)
    return "\n".join(lines)


@pytest.mark.timeout(600)
def test_right_cells_are_never_refused_under_constant_looks(ranks, monkeypatch):
    monkeypatch.setattr(running_cell, "CHECK", 0.005)
    for seed in range(int(os.environ.get("DLCOURSE_RIGHT_CELLS", "40"))):
        run(ranks, mixed_cell(seed))


class TwoRanks:
    """Processes of which each waits for a message of the other one; `waits` are told one by one.

    A look is not of one moment: a rank that sends after its messages were counted, and waits before
    its wait is read, seems to have sent nothing and to wait.
    """

    size, timeout, dead, life, state = 2, 30, {}, 0, "ready"

    def __init__(self, waits: list[int]) -> None:
        self.waits, self.cell = waits, running_cell.RunningCell(self, 1, [0, 1], None, tick=id)

    def alive(self) -> bool:
        return True

    def send(self, rank: int, kind: str, **_: object) -> None:
        self.cell.done[rank] = {"id": 1}

    def receive(self, _: float) -> None:
        if not self.waits:
            self.cell.done = {0: {"id": 1}, 1: {"id": 1}}

    def ask(self, kind: str, ranks: list[int], *, limit: float) -> dict:
        number = self.waits.pop(0)
        return {rank: {"where": self.where(1 - rank, number)} for rank in ranks}

    def where(self, peer: int, number: int) -> dict:
        wait = dict(direction="recv", group="world", peer=peer, tag=0, count=1)
        return dict(
            wait=wait | {"id": number, "limited": False}, certain=True, call=None, line=None,
            time_s=0.0, cpu_s=0.0, collectives={"world": []}, members={"world": [0, 1]},
            messages={("recv", "world", peer, 0): 1}, blind=False,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("waits", "said"),
    [([1], None), ([1, 2, 3], None), ([1, 1, 1, 1], "no other rank answers: rank 0 waits in recv")],
    ids=["one look", "another wait in each look", "the same wait"],
)
def test_one_look_proves_no_deadlock(waits, said, monkeypatch):
    monkeypatch.setattr(running_cell, "CHECK", 0.0)
    two = TwoRanks(waits)
    two.cell.wait()
    assert two.cell.headline is None if said is None else said in two.cell.headline


# -- and true deadlocks ---------------------------------------------------------------------------

WRONG = {
    "both receive first": (
        "if rank < 2: dist.recv(torch.ones(1), 1 - rank)",
        "rank 0 waits in recv (float32 [1]) with rank 1",
    ),
    "both send first": (
        "if rank < 2: dist.send(torch.ones(1), 1 - rank)",
        "rank 1 waits in send (float32 [1]) with rank 0",
    ),
    "one receive too many": (
        "kept = dist.isend(torch.ones(1), 1) if rank == 0 else None\n"
        "if rank == 1:\n    for _ in range(2): dist.irecv(torch.ones(1), 0).wait()",
        "rank 1 waits in recv with rank 0",
    ),
    "another tag": (
        "if rank == 0: dist.send(torch.ones(1), 1, tag=1)\n"
        "if rank == 1: dist.recv(torch.ones(1), 0, tag=2)",
        "no other rank answers",
    ),
    "a receive from anybody": ("if rank == 3: dist.recv(torch.ones(1))", "rank 3 waits in recv"),
    "two groups in another order": (
        "a = [dist.new_group([0, 1]), dist.new_group([0, 1])]\n"
        "for group in (a if rank else a[::-1]):\n"
        "    if rank < 2: dist.all_reduce(torch.ones(1), group=group)",
        "never reached all_reduce #1",
    ),
    "a collective here, a message there": (
        "x = torch.ones(1)\ndist.recv(x, 1) if rank == 0 else dist.all_reduce(x)",
        "rank 0 never reached all_reduce #",
    ),
    "an asynchronous one": (
        "if rank != 2: dist.all_reduce(torch.ones(1), async_op=True).wait()",
        "rank 2 never reached all_reduce #",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_deadlock_is_named(ranks, case):
    source, words = WRONG[case]
    started = time.monotonic()
    said = refused(ranks, source)
    assert words in said.splitlines()[0], said
    if case != "a receive from anybody":  # the only wait that Gloo ends for no cut
        assert "keep their variables" in said
    # 2 looks and a second for the others to end; far below the group's own time-out of 30 s
    assert time.monotonic() - started < 60  # a busy machine gives ranks more time
    run(ranks, "dist.barrier()")


# -- stopped --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_stop_in_healthy_training_accuses_nobody(ranks, pause):
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(RanksInterrupted) as caught:
        run(
            ranks,
            f"""
            import time
            x = torch.ones(1000)
            while True:
                time.sleep({pause} * rank)
                dist.all_reduce(x)
            """,
        )
    timer.join()
    lines = str(caught.value).splitlines()
    assert lines[0] == "interrupted"
    assert "line " in lines[1], "where each rank stood"
    run(ranks, "dist.barrier()")


def test_asking_for_the_own_number_is_computing(ranks):
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(RanksInterrupted) as caught:
        run(ranks, "while dist.get_rank() == 2: pass\ndist.barrier()")
    timer.join()
    lines = str(caught.value).splitlines()
    assert lines[0] == "interrupted"
    line = next(x for x in lines if x.strip().startswith("rank 2"))
    assert "get_rank," not in line and "waiting" not in line, line


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_connection_that_a_cut_has_closed_is_no_cause(interrupted):
    """Of ranks whose connections are cut one after the other, the first takes those of others."""
    lost = dict(
        type="RuntimeError", message="gloo: Connection closed by peer", transport=True, cut=False,
        interrupted=False, traceback="", line=1, code="", collective=None,
    )  # fmt: skip
    processes = SimpleNamespace(dead={}, size=2, timeout=30, machine_names=list, life=0)
    running = running_cell.RunningCell(processes, 1, [0, 1], None, tick=lambda cell: None)
    running.done = {0: {"error": lost}, 1: {"error": lost | {"cut": True}}}
    headline = both(lambda: "rank 1 never reached all_reduce #2")
    running.headline = None if interrupted else headline
    running.interrupted = interrupted
    expected = "interrupted" if interrupted else headline
    assert message(running, {r: d["error"] for r, d in running.done.items()})[0] == expected
