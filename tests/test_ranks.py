"""The ranks engine with real processes: results, namespaces, output, failures, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from dlcourse.ranks import RankError, Ranks, RanksInterrupted, expect_failure, limits
from dlcourse.ranks import output as output_module
from dlcourse.ranks.display import Results, ranges
from dlcourse.ranks.output import Output
from dlcourse.ranks.worker import Rank


@pytest.fixture(scope="module")
def ranks():
    with Ranks(4) as pool:
        yield pool


def cell(pool: Ranks, source: str, ranks: list[int] | None = None, *, record: bool = False):
    return pool.cell(textwrap.dedent(source), ranks, record=record)


def fails(pool: Ranks, source: str, ranks: list[int] | None = None) -> tuple[str, float]:
    """The message of a cell that must fail, and the seconds until it came."""
    started = time.monotonic()
    with pytest.raises(RankError) as caught:
        cell(pool, source, ranks)
    return str(caught.value), time.monotonic() - started


def works(pool: Ranks) -> None:
    """The next cell works: all ranks are there and in step."""
    cell(pool, "check = torch.ones(1); dist.all_reduce(check)")
    assert [float(x[0]) for x in pool["check"]] == [4.0] * 4


# -- results and namespaces ---------------------------------------------------------------------


def test_results_come_rank_by_rank_and_equal_ones_are_folded(ranks):
    assert repr(cell(ranks, "rank * 10")) == "rank 0: 0\nrank 1: 10\nrank 2: 20\nrank 3: 30"
    assert repr(cell(ranks, "'same'")) == "ranks 0-3: 'same'"
    assert cell(ranks, "1 + 1;") is None
    assert cell(ranks, "a = 1") is None


def test_names_stay_between_cells_and_come_back_without_torch(ranks):
    cell(ranks, "x = torch.full((2,), float(rank), dtype=torch.bfloat16)\ny = {'d': device}")
    values = ranks["x"]
    assert all(isinstance(v, np.ndarray) and v.dtype == np.float32 for v in values)
    assert [v[0] for v in values] == [0, 1, 2, 3]
    assert repr(ranks["y"][0]["d"]) == "device(type='cpu')"
    with pytest.raises(KeyError, match="nothing_such is not a name in ranks 0-3"):
        ranks["nothing_such"]


def test_some_ranks_only(ranks):
    cell(ranks, "who = None")
    cell(ranks, "who = rank", [0, 2])
    assert ranks["who"] == [0, None, 2, None]


def test_functions_travel_by_value_and_errors_of_arguments_too(ranks):
    offset = 5

    def shifted(a, *, b):
        import torch.distributed as dist

        return dist.get_rank() + a + b + offset

    assert ranks.run(shifted, 1, b=2) == [8, 9, 10, 11]
    assert ranks.run(shifted, 1, b=2, ranks=[3]) == [11]


def test_source_of_functions_of_cells(ranks):
    cell(ranks, "def double(x):\n    return 2 * x")
    assert "return 2 * x" in repr(cell(ranks, "import inspect; inspect.getsource(double)"))


def test_recorded_cell_fills_last(ranks):
    cell(ranks, "dist.all_reduce(torch.ones(1000))", record=True)
    assert len(ranks.last.records) == 4
    calls = [record["comm"] for record in ranks.last.records]
    assert [(c["op"], c["bytes"]) for (c,) in calls] == [("all_reduce", 4000)] * 4


def test_a_recorded_cell_knows_what_an_unrecorded_one_has_left(ranks):
    """Also when it is slow to look for it, which is otherwise not done in every cell."""
    ranks.cell("much = [[i] for i in range(500_000)]")
    ranks.cell("pass")  # looks at all of it
    ranks.cell("left = torch.ones(1_000_000)", record=False)
    ranks.cell("pass")
    held = [rank["end"]["other"] for rank in ranks.last.memory.ranks]
    ranks.cell("del much, left", record=False)
    assert min(held) >= 4_000_000


def test_each_rank_has_its_share_of_the_cores(ranks):
    assert (
        ranks.run(lambda: __import__("torch").get_num_threads()) == [limits.threads_per_rank(4)] * 4
    )


def test_standard_input_is_empty(ranks):
    message, _ = fails(ranks, "input()")
    assert "EOFError" in message


# -- output -------------------------------------------------------------------------------------


def test_output_is_tagged_and_in_rank_order(ranks, capsys):
    cell(ranks, "import time; time.sleep(0.1 * (3 - rank)); print('a'); print('half', end='')")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"[rank {r}] {word}" for r in range(4) for word in ("a", "half")]


def test_output_of_subprocesses_and_c_code_is_caught(ranks, capsys):
    cell(ranks, "import os; os.system('echo from a shell'); os.write(2, b'raw\\n')", [1])
    captured = capsys.readouterr()
    assert "[rank 1] from a shell" in captured.out
    assert "[rank 1] raw" in captured.err


def test_flood_is_cut_and_does_not_stall(ranks, capsys):
    started = time.monotonic()
    cell(ranks, "for i in range(1_000_000): print(i)", [0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[rank 0] 0" and lines[-1] == "[rank 0] 999999"
    assert "lines left out" in lines[output_module.HEAD_LINES]
    assert len(lines) == output_module.HEAD_LINES + 1 + output_module.TAIL_LINES
    assert time.monotonic() - started < 60


def test_junk_and_one_endless_line(ranks, capsys):
    cell(ranks, "import os; os.write(1, bytes(range(256)))", [0])
    cell(ranks, "import sys; sys.stdout.write('x' * 3_000_000)", [0])
    out = capsys.readouterr().out
    assert "\\x00\\x01" in out and "\x07" not in out
    assert len(out) < 200_000
    works(ranks)


def test_marker_in_pieces_is_found():
    marker = b"\0abc\n"
    out = Output([0], marker, live=False)
    for byte in b"hello" + marker:
        out.feed(0, "out", bytes([byte]))
    out.feed(0, "err", marker)
    assert out.ended(0)


def test_a_question_where_a_rank_stands_keeps_nothing_alive(monkeypatch):
    """Frames hold tensors: kept while source is read, they would be counted as memory in use."""
    asked = threading.Event()

    def slow(*args):
        asked.set()
        time.sleep(0.2)
        return "x = object()\n"

    monkeypatch.setattr("linecache.getline", slow)
    monkeypatch.setattr("linecache.checkcache", slow)
    rank = SimpleNamespace(
        main_thread=threading.get_ident(),
        running=1,
        history=SimpleNamespace(complete=True),
        waits=SimpleNamespace(now=None),
        _calls=dict,
    )
    answers = []
    asker = threading.Thread(target=lambda: answers.append(Rank.where(rank)))
    scope = {"asker": asker, "asked": asked, "torch": torch, "weakref": weakref}
    cell = """
def work():
    x = torch.ones(2)
    asker.start()
    asked.wait(5)
    return weakref.ref(x)
found = work()()
"""
    exec(compile(cell, "<ranks cell 7>", "exec"), scope)
    asker.join()
    assert scope["found"] is None
    line = answers[0]["line"]
    assert line["line"] in (4, 5)
    assert (line["file"], line["code"]) == ("<ranks cell 7>", "x = object()")


def test_many_calls_of_a_smaller_group_are_no_disagreement(ranks):
    """They push the calls of all ranks out of what torch remembers, in some ranks only."""

    def busy_pairs():
        group = dist.new_group([0, 2])
        for _ in range(3):
            dist.all_reduce(torch.ones(1))
        for _ in range(250 if dist.get_rank() in (0, 2) else 0):
            dist.all_reduce(torch.ones(1), group=group)

    for _ in range(2):
        ranks.run(busy_pairs)
    ranks.run(lambda: dist.barrier())


# -- failures: each ends in seconds, says who and where, and the next cell works -------------------


def test_exception_while_others_wait(ranks):
    cell(ranks, "kept = rank")
    message, seconds = fails(
        ranks,
        """
        x = torch.ones(4)
        if rank == 1:
            1 / 0
        dist.all_reduce(x)
        """,
    )
    assert message.startswith("rank 1 raised ZeroDivisionError: division by zero")
    assert "ranks 0, 2-3  waiting in all_reduce #" in message
    assert "(float32 [4], 16 bytes), line 5: dist.all_reduce(x)" in message
    assert "line 4: 1 / 0" in message and "keep their variables" in message
    assert "worker.py" not in message
    assert seconds < 10
    works(ranks)
    assert ranks["kept"] == [0, 1, 2, 3]


def test_rank_that_never_calls(ranks):
    message, seconds = fails(ranks, "if rank != 1:\n    dist.barrier()")
    assert message.startswith("rank 1 never reached barrier #")
    assert "ranks 0, 2-3 wait in it" in message and "line 2: dist.barrier()" in message
    assert seconds < 10
    works(ranks)


def test_wrong_order(ranks):
    message, seconds = fails(
        ranks,
        """
        x = torch.ones(4)
        if rank == 0:
            dist.broadcast(x, 1)
        else:
            dist.all_reduce(x)
        """,
    )
    assert "the ranks disagree about collective #" in message
    assert "rank 0: broadcast (float32 [4], 16 bytes)" in message
    assert "ranks 1-3: all_reduce (float32 [4], 16 bytes)" in message
    assert "the same calls, in the same order" in message
    assert seconds < 10
    works(ranks)


@pytest.mark.parametrize(
    ("tensor", "wrong"),
    [
        ("torch.ones(8 if rank == 0 else 4)", "all_reduce (float32 [8], 32 bytes)"),
        ("torch.ones(4, dtype=torch.float64 if rank == 3 else torch.float32)", "float64"),
    ],
)
def test_mismatched_shape_and_type(ranks, tensor, wrong):
    message, seconds = fails(ranks, f"x = {tensor}\ndist.all_reduce(x)")
    assert "the ranks disagree about collective #" in message and wrong in message
    assert seconds < 15
    works(ranks)


def test_receive_that_nobody_sends(ranks):
    message, seconds = fails(ranks, "if rank == 0:\n    dist.recv(torch.ones(2), src=3)")
    assert "rank 0 waits in recv (float32 [2]) with rank 3" in message
    assert seconds < 10
    works(ranks)


def test_collective_that_returns_early_is_noticed_before_it_mixes_two_calls(ranks):
    message, _ = fails(
        ranks,
        """
        if rank == 0:
            work = dist.broadcast(torch.ones(2), 0, async_op=True)
        """,
    )
    assert "out of step" in message
    works(ranks)


def test_traceback_shows_the_cell_and_the_course_not_torch(ranks):
    message, _ = fails(ranks, "from dlcourse.models.gpt import GPT\nGPT()(torch.ones(1, 4))")
    assert 'File "<ranks cell' in message and 'File "dlcourse/models/gpt.py"' in message
    assert "/torch/" not in message and "worker.py" not in message


def test_sys_exit_is_an_error_and_not_the_end(ranks):
    message, _ = fails(ranks, "import sys\nif rank == 2:\n    sys.exit(3)")
    assert message.startswith("rank 2 raised SystemExit: 3")
    works(ranks)


def test_memory_that_is_not_there(ranks):
    message, _ = fails(ranks, "torch.empty(1 << 50, dtype=torch.uint8)")
    assert "allocate" in message
    works(ranks)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os, signal\nif rank == 3: os.kill(os.getpid(), signal.SIGKILL)\n", "SIGKILL"),
        ("import ctypes\nif rank == 3: ctypes.string_at(0)\n", "SIGSEGV"),
        ("import os\nif rank == 3: os._exit(7)\n", "exit code 7"),
    ],
)
def test_rank_that_dies(ranks, source, words):
    message, seconds = fails(ranks, source + "dist.all_reduce(torch.ones(2))")
    assert message.startswith("rank 3 ") and words in message.splitlines()[0]
    assert "variables are lost" in message
    assert seconds < 5
    works(ranks)


def test_rank_that_dies_between_cells(ranks, capsys):
    works(ranks)
    os.kill(ranks.pids[2], signal.SIGKILL)
    time.sleep(0.3)
    works(ranks)
    assert "started afresh" in capsys.readouterr().out


def test_messages_in_a_loop_are_no_deadlock_and_the_launcher_survives_a_cut(ranks):
    # After connections were cut, elastic's own must live on: it would give up after 15 seconds.
    fails(ranks, "if rank: dist.barrier()")
    pids = ranks.pids
    cell(
        ranks,
        """
        import time
        end, y = time.time() + 18, torch.zeros(1)
        while y[0] == 0:
            for _ in range(50):
                if rank % 2:
                    dist.send(y, (rank + 1) % 4); dist.recv(y, rank - 1)
                else:
                    dist.recv(y, (rank - 1) % 4); dist.send(y, rank + 1)
            y[0] = float(rank == 0 and time.time() > end)
            dist.all_reduce(y)
        """,
    )
    works(ranks)
    assert ranks.pids == pids


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is known to keep freed memory")
def test_freed_memory_goes_back_to_the_system(ranks):
    def held() -> int:
        return psutil.Process(ranks.pids[0]).memory_info().rss

    before = held()
    # Small pieces between the freed ones keep glibc from giving the rest back by itself.
    ranks.cell("pieces = [bytes(2000) for _ in range(100_000)]; pieces = pieces[::50]", ranks=[0])
    ranks.cell("import time; time.sleep(0.3)", ranks=[0])
    until = time.monotonic() + 5
    while held() - before > 50e6 and time.monotonic() < until:
        time.sleep(0.05)
    assert held() - before < 50e6
    ranks.cell("del pieces", ranks=[0])


def test_time_out_of_a_collective():
    with Ranks(2, timeout=3, default=False) as pool:
        message, seconds = fails(
            pool,
            """
            import time
            if rank == 0:
                time.sleep(8)
            dist.barrier()
            """,
        )
        assert message.startswith("rank 1 gave up after 3 s"), message
        assert "Ranks(2, timeout=12)" in message and "gave up waiting in barrier" in message
        assert "rank 0  interrupted" in message or "computing, line 4" in message, message
        assert seconds < 8


def interrupt_after(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(100)",
        "if rank == 0:\n    while True: pass\ndist.barrier()",
        "for i in range(10**9):\n    print(i)",
    ],
)
def test_interrupt(ranks, source):
    cell(ranks, "kept = rank + 1")
    timer = interrupt_after(0.8)
    started = time.monotonic()
    with pytest.raises(RanksInterrupted) as caught:
        cell(ranks, source)
    timer.join()
    assert str(caught.value).startswith("interrupted")
    assert time.monotonic() - started < 12
    works(ranks)
    assert ranks["kept"] == [1, 2, 3, 4]


def test_rank_that_swallows_interrupts_is_ended(ranks):
    timer = interrupt_after(0.8)
    with pytest.raises(RanksInterrupted) as caught:
        cell(
            ranks,
            """
            import time
            while True:
                try:
                    time.sleep(1)
                except KeyboardInterrupt:
                    pass
            """,
        )
    timer.join()
    assert "variables are lost" in str(caught.value)
    works(ranks)


def test_expect_failure(ranks, capsys):
    with expect_failure("never reached"):
        cell(ranks, "if rank == 0: dist.barrier()")
    assert "never reached barrier" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="nothing failed"), expect_failure("anything"):
        cell(ranks, "pass")
    with pytest.raises(AssertionError, match="but it said"), expect_failure("something else"):
        cell(ranks, "1 / 0")
    works(ranks)


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "n=0: the number of ranks must be a whole number of at least 1"),
        ({"n": "four"}, "n='four'"),
        ({"n": True}, "n=True"),
        ({"n": 100_000}, "would fit"),
        ({"n": 2, "device": "tpu"}, "device='tpu': must be one of"),
        ({"n": 2, "device": "mps"}, "an Apple GPU serves one process"),
        ({"n": 2, "timeout": 0}, "timeout=0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(ranks, arguments, words):
    with pytest.raises(ValueError, match="(?s)" + words.replace("(", r"\(")):
        Ranks(**arguments)
    works(ranks)  # the pool that was there is still there


def test_missing_device_is_refused(ranks):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="torch sees no GPU"):
        Ranks(2, device="cuda", default=False)
    works(ranks)


def test_64_ranks_do_not_fit_into_2_gb(monkeypatch):
    monkeypatch.setattr(limits, "memory_bytes", lambda: 2_000_000_000)
    with pytest.raises(ValueError, match=r"64 ranks need about 3\.. GB .* 2\.0 GB: at most"):
        Ranks(64)
    assert limits.default_ranks() == 4
    monkeypatch.setattr(limits, "memory_bytes", lambda: 1_000_000_000)
    assert limits.default_ranks() == 2


def test_bad_cells_are_refused_without_losing_the_pool(ranks):
    with pytest.raises(ValueError, match="ranks=7: there are ranks 0-3"):
        cell(ranks, "1", [7])
    with pytest.raises(SyntaxError):
        cell(ranks, "for")
    works(ranks)


def test_ranges():
    assert ranges([0, 1, 2, 5]) == "0-2, 5"
    assert repr(Results({1: {"repr": "a"}, 0: {"repr": "a"}})) == "ranks 0-1: a"


# -- life and death -----------------------------------------------------------------------------


def test_stop_and_restart(ranks):
    cell(ranks, "gone = 1")
    old = ranks.pids
    ranks.restart()
    assert not set(old) & set(ranks.pids)
    with pytest.raises(KeyError):
        ranks["gone"]
    pool = Ranks(2, default=False)
    pids = pool.pids
    pool.stop()
    assert "stopped" in repr(pool)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(ValueError, match="stopped"):
        cell(pool, "1")


def test_spawned_ranks_where_a_fork_is_not_safe(tmp_path):
    # What macOS uses; a process of its own, because the agent reads the setting when it starts.
    script = """
from dlcourse import RankError, Ranks
if __name__ == "__main__":
    with Ranks(2) as ranks:
        ranks.cell("x = torch.ones(1); dist.all_reduce(x); print('here')")
        print(ranks["x"])
        try:
            ranks.cell("import os\\nif rank == 1: os.kill(os.getpid(), 9)\\ndist.barrier()")
        except RankError as error:
            print(error)
        print(ranks.cell("rank"))
"""
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "DLCOURSE_START_METHOD": "spawn"},
        timeout=170,
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["[rank 0] here", "[rank 1] here"], done.stdout + done.stderr
    assert "2." in lines[2] and any(x.startswith("rank 1 was killed") for x in lines)
    assert lines[-2:] == ["rank 0: 0", "rank 1: 1"]


SCRIPT = """
import sys, time
from dlcourse import Ranks
ranks = Ranks(2)
ranks.cell("dist.all_reduce(torch.ones(1))")
assert "torch" not in sys.modules, "the notebook's side imports torch"
print(*ranks.pids, ranks.host.process.pid, flush=True)
{then}
"""


@pytest.mark.parametrize(
    ("then", "sent"),
    [
        ("time.sleep(60)", signal.SIGKILL),
        ("time.sleep(60)", signal.SIGTERM),
        ("ranks.cell('while True: pass')", signal.SIGKILL),
        ("ranks.cell('if rank == 0: dist.barrier()')", signal.SIGKILL),
        ("pass", None),
    ],
)
def test_nothing_is_left_when_the_notebook_ends(then, sent, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(then=then)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    pids = [int(x) for x in process.stdout.readline().split()]
    assert len(pids) == 3
    family = set(pids)
    if sent:
        family |= {c.pid for c in psutil.Process(process.pid).children(recursive=True)}
    time.sleep(0.3)
    if sent:
        process.send_signal(sent)
    process.wait(20)
    limit = time.monotonic() + 3
    while time.monotonic() < limit and any(_alive(p) for p in family):
        time.sleep(0.05)
    assert not [p for p in family if _alive(p)]
    # The folder of its compiler is torch's own, made when it is imported.
    assert not [f for f in tmp_path.iterdir() if not f.name.startswith("torchinductor")]
    shared = [f.name for f in Path("/dev/shm").glob("*")]
    assert not [name for name in shared if any(str(pid) in name for pid in family)]


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_no_socket_is_left_to_join_once_the_ranks_are_connected(ranks):
    files = psutil.Process(ranks.pids[0]).open_files()
    assert not Path(ranks.host.directory).exists()
    assert not [f for f in files if f.path.endswith("/s")]
