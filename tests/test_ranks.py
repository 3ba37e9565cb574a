"""The ranks engine with real processes: results, namespaces, output, failures, nothing left."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
import zmq

from dlcourse import machine
from dlcourse.ranks import RankError, Ranks, RanksInterrupted, expect_failure
from dlcourse.ranks.agent.agent import Agent, PoolProcesses
from dlcourse.ranks.directories import MARK
from dlcourse.ranks.display import Results, plain, shorten
from dlcourse.ranks.notebook import observer, running_cell
from dlcourse.ranks.notebook import output as output_module
from dlcourse.ranks.notebook.output import Output, Stream
from dlcourse.ranks.notebook.rank_processes import RankProcesses
from dlcourse.ranks.source import check
from dlcourse.ranks.worker.control import Control
from dlcourse.ranks.worker.interrupt import Interrupt
from dlcourse.ranks.worker.whereabouts import Whereabouts


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


def test_a_cell_is_plain_python_whatever_the_engine_imports(ranks):
    cell(
        ranks,
        """
        import dataclasses, functools
        def f(x: int): ...
        @dataclasses.dataclass
        class Point:
            x: float
        @functools.singledispatch
        def name(x): return "any"
        def local():
            class Own: pass
            @name.register
            def _(x: Own): return "own"
            return name(Own())
        found = [f.__annotations__["x"] is int, dataclasses.fields(Point)[0].type is float, local()]
        """,
    )
    assert ranks["found"] == [[True, True, "own"]] * 4
    cell(ranks, "from __future__ import annotations\ndef g(x: int): ...")
    cell(
        ranks, "def h(x: int): ...\nkinds = [g.__annotations__['x'], h.__annotations__['x'] is int]"
    )
    assert ranks["kinds"] == [["int", True]] * 4


def test_a_value_that_takes_long_is_waited_for(ranks):
    cell(
        ranks,
        """
        import time
        class Slow:
            def __reduce__(self):
                time.sleep(11 if rank == 1 else 0)  # a request of the engine waits for 10
                return int, (rank,)
        slow = Slow()
        """,
    )
    assert ranks["slow"] == [0, 1, 2, 3]
    works(ranks)


def test_a_value_that_never_comes_can_be_stopped(ranks):
    cell(
        ranks,
        """
        import time

        class Endless:
            def __reduce__(self):
                while rank == 2: time.sleep(0.01)
                return int, (rank,)
        endless, kept = Endless(), rank
        """,
    )
    timer = interrupt_after(0.8)
    with pytest.raises(RanksInterrupted, match="rank 2 had not sent endless yet"):
        ranks["endless"]
    timer.join()
    works(ranks)
    assert ranks["kept"] == [0, 1, 2, 3]


def test_values_that_cannot_be_sent_or_read(ranks):
    cell(
        ranks,
        """
        class Leaves:
            def __reduce__(self): raise SystemExit(3)
        class Silent:
            def __reduce__(self): raise ValueError
            def __repr__(self): raise ValueError
        class Elsewhere:
            def __reduce__(self): return int, ("not a number",)
        leaves, silent, elsewhere = Leaves(), Silent(), Elsewhere()
        """,
    )
    with pytest.raises(RankError, match="leaves cannot be sent by ranks 0-3: rank 0: SystemExit"):
        ranks["leaves"]
    assert "repr() fails with ValueError" in repr(ranks["silent"][0])
    with pytest.raises(RankError, match="elsewhere of rank 0 cannot be read in the notebook"):
        ranks["elsewhere"]
    works(ranks)


def test_what_is_no_name_is_refused_and_costs_no_variables(ranks):
    """A slice cannot be looked up in a dict: the ranks must not end over it."""
    cell(ranks, "kept = rank")
    for wrong in (slice(0, 1), 0, ["kept"], {}, None):
        with pytest.raises(ValueError, match="give the name of a variable of the ranks, as text"):
            ranks[wrong]
    assert ranks["kept"] == [0, 1, 2, 3]


def test_every_tensor_with_numbers_comes_back_as_an_array(ranks):
    """Views that are conjugated or negated when read, halves of complex numbers."""
    cell(
        ranks,
        """
        import warnings
        z = torch.tensor([1 + 2j, 3 - 1j])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            half = z.to(torch.complex32)
        sent = {"conj": z.conj(), "imag": z.conj().imag, "half": half, "rank": rank}
        """,
    )
    for rank, sent in enumerate(ranks["sent"]):
        assert all(isinstance(sent[name], np.ndarray) for name in ("conj", "imag", "half"))
        assert sent["conj"].tolist() == [1 - 2j, 3 + 1j] and sent["imag"].tolist() == [-2, 1]
        assert sent["half"].tolist() == [1 + 2j, 3 - 1j] and sent["half"].dtype == np.complex64
        assert sent["rank"] == rank


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
        ranks.run(lambda: __import__("torch").get_num_threads())
        == [machine.threads_per_rank(4)] * 4
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
    shown = output_module.HEAD_LINES + output_module.TAIL_LINES
    assert len(lines) == shown + 1
    said = f"[rank 0] … {1_000_000 - shown:,} lines left out …"
    assert lines[output_module.HEAD_LINES] == said
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


def test_the_end_of_a_cell_that_comes_late_is_not_shown_in_the_next():
    """On a crowded machine a cell does not wait for it for ever."""
    late, own = output_module.new_marker(), output_module.new_marker()
    stream = Stream(0, own)
    assert stream.feed(b"before\npart" + late + b"now\n") == ["before", "part", "now"]
    assert stream.feed(late + own) == [] and stream.ended and stream.finish() == []


def test_no_character_is_cut_in_two():
    marker = b"\0mark of the end\n"
    for shift in range(4):  # wherever the cut falls, in three bytes of each character
        stream = Stream(0, marker)
        text = "x" * shift + "한" * 4000
        shown = stream.feed(text.encode()) + stream.feed(marker)
        assert "\ufffd" not in "".join(shown) and "".join(shown).count("한") > 1000
    stream = Stream(0, marker)
    lines = "".join(f"{'글' * (1500 + i % 3)}\n" for i in range(output_module.HEAD_LINES + 40))
    shown = [*stream.feed(lines.encode()), *stream.finish()]
    assert "\ufffd" not in "".join(shown)
    assert shorten("abcde\u0301f", 5).startswith("abcd …")  # an accent stays with its letter
    assert shorten("ab\U0001f469\u200d\U0001f680", 4).startswith("ab …")
    assert shorten("abc", 3) == "abc"
    assert plain("a\ud800b") == "a\\ud800b"


def test_a_question_where_a_rank_stands_keeps_nothing_alive(monkeypatch):
    """Frames hold tensors: kept while source is read, they would be counted as memory in use."""
    asked = threading.Event()

    def slow(*args):
        asked.set()
        time.sleep(0.2)
        return "x = object()\n"

    monkeypatch.setattr("linecache.getline", slow)
    monkeypatch.setattr("linecache.checkcache", slow)
    collectives = SimpleNamespace(complete=True, last=dict, members=dict)
    waits = SimpleNamespace(now=None, posted={}, lost=set)
    whereabouts = Whereabouts(collectives, waits)  # of this thread
    answers = []
    asker = threading.Thread(target=lambda: answers.append(whereabouts.now()))
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

SOON = 25  # s: before the time-out of 30 s speaks, on a busy machine too


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
    assert seconds < SOON
    works(ranks)
    assert ranks["kept"] == [0, 1, 2, 3]


MESSAGES = """
from dlcourse.collectives.ring import ring_all_reduce
kept, x, op = rank, torch.ones(1000), dist.P2POp
around = [op(dist.isend, x, (rank + 1) % 4), op(dist.irecv, torch.ones(1000), (rank + 3) % 4)]
"""


@pytest.mark.parametrize(
    "wait",
    [
        "for work in dist.batch_isend_irecv(around): work.wait()",
        "dist.isend(torch.ones(10_000_000), (rank + 1) % 4).wait()",  # more than a socket holds
        "dist.irecv(x, (rank + 3) % 4).wait()",
        "ring_all_reduce(x)",
    ],
)
def test_exception_while_others_wait_for_messages(ranks, wait):
    cell(ranks, MESSAGES)
    message, seconds = fails(ranks, f"if rank == 1: 1 / 0\n{wait}")
    assert message.startswith("rank 1 raised ZeroDivisionError: division by zero")
    assert "keep their variables" in message and seconds < SOON
    works(ranks)
    assert ranks["kept"] == [0, 1, 2, 3]


def test_rank_that_never_calls(ranks):
    message, seconds = fails(ranks, "if rank != 1:\n    dist.barrier()")
    assert message.startswith("rank 1 never reached barrier #")
    assert "ranks 0, 2-3 wait in it" in message and "line 2: dist.barrier()" in message
    assert seconds < SOON
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
    assert seconds < SOON
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
    assert seconds < SOON
    works(ranks)


def test_receive_that_nobody_sends(ranks):
    message, seconds = fails(ranks, "if rank == 0:\n    dist.recv(torch.ones(2), src=3)")
    assert "rank 0 waits in recv (float32 [2]) with rank 3" in message
    assert seconds < SOON
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


def test_a_collective_that_one_rank_has_left_under_way_costs_no_variables(ranks):
    """The old group would wait for its end: a rank keeps the other's connections alive."""
    ranks.cell("here = 7")
    source = (
        "kept = [dist.all_reduce(torch.ones(3), async_op=True) for _ in range(2 + (rank == 0))]"
    )
    with pytest.raises(RankError, match="out of step"):
        ranks.cell(source)
    assert ranks["here"] == [7] * 4
    ranks.cell("total = torch.ones(1)\ndist.all_reduce(total)")
    assert [value.item() for value in ranks["total"]] == [4.0] * 4


def test_a_message_that_a_failed_cell_has_dropped_is_not_taken_for_the_next(ranks):
    """All ranks are in step: as many sends as receives. But nobody receives the first any more."""
    ranks.cell("partner = rank ^ 1\nimport time")
    leave = """
        receive = dist.irecv(torch.zeros(3), partner)
        del receive
        time.sleep(0.3)
        send = dist.isend(torch.full((3,), 1.0), partner)
        raise ValueError("left")
        """
    message, _ = fails(ranks, leave)
    assert "ValueError: left" in message
    exchange = """
        got = torch.zeros(3)
        works = [dist.irecv(got, partner), dist.isend(torch.full((3,), 2.0), partner)]
        for work in works:
            work.wait()
        """
    ranks.cell(textwrap.dedent(exchange))
    assert all(bool((got == 2).all()) for got in ranks["got"]), ranks["got"]


def test_traceback_shows_the_cell_and_the_course_not_torch(ranks):
    message, _ = fails(ranks, "from dlcourse.models.gpt import GPT\nGPT()(torch.ones(1, 4))")
    assert 'File "<ranks cell' in message and 'File "dlcourse/models/gpt.py"' in message
    assert "/torch/" not in message and "worker.py" not in message


ODD = """
class Silent(Exception):
    def __str__(self): raise RuntimeError("no words")
class Text(str): pass
class Own(Exception):
    def __str__(self): return Text("own text")
class Base(BaseException):
    def __str__(self): raise SystemExit(1)
class Named(type):
    @property
    def __name__(cls): raise RuntimeError("no name")
class Nameless(Exception, metaclass=Named): pass
class Bad:
    def __repr__(self): raise Base
class Html:
    def _repr_html_(self): raise RuntimeError
    def __repr__(self): return Text("plain \\ud800")
class Anything:
    def __getattr__(self, name): raise RuntimeError(name)
    def __repr__(self): return "anything"
"""


def test_what_has_no_words_of_its_own_is_still_reported(ranks):
    """Exceptions and results whose text fails, is none, or is endless: the ranks live on."""
    pids = ranks.pids
    cell(ranks, ODD + "kept = 7")
    for source, words in [
        ("raise Silent", "raised Silent: <its str() fails with RuntimeError>"),
        ("raise Own", "raised Own: own text"),
        ("raise Base", "raised Base: <its str() fails with SystemExit>"),
        ("raise Nameless", "its traceback cannot be shown"),
        ("raise GeneratorExit", "raised GeneratorExit"),
        ("raise ValueError('x' * 10_000_000)", "(10,000,000 characters)"),
        ("raise ExceptionGroup('all', [Silent(), Own()])", "raised ExceptionGroup: all (2 sub"),
        ("Bad()", "raised Base"),
    ]:
        message, _ = fails(ranks, source)
        assert words in message, message
        assert len(message) < 100_000
    assert repr(cell(ranks, "Html()")) == "ranks 0-3: plain \\ud800"
    assert repr(cell(ranks, "Anything()")) == "ranks 0-3: anything"
    cell(ranks, "import sys; sys.stdout = sys.stderr = None")
    cell(ranks, "sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__")
    assert ranks["kept"] == [7] * 4 and ranks.pids == pids
    works(ranks)


def test_causes_and_members_of_an_error_are_shown(ranks):
    """As a notebook shows them: what an error came from, and what a group of errors holds."""
    message, _ = fails(
        ranks, "try:\n    {}['k']\nexcept KeyError as e:\n    raise OSError(1) from e"
    )
    assert "KeyError: 'k'" in message and "direct cause" in message
    assert message.index("KeyError: 'k'") < message.index("direct cause")
    message, _ = fails(ranks, "try:\n    {}['k']\nexcept KeyError:\n    1 / 0")
    assert "KeyError: 'k'" in message and "another exception occurred" in message
    message, _ = fails(ranks, "try:\n    {}['k']\nexcept KeyError:\n    raise OSError(1) from None")
    assert "KeyError" not in message
    source = """
        import asyncio
        async def divides(): 1 / 0
        async def both():
            async with asyncio.TaskGroup() as group:
                group.create_task(divides())
        asyncio.run(both())
    """
    message, _ = fails(ranks, source)
    assert "ZeroDivisionError: division by zero" in message
    assert "async def divides(): 1 / 0" in message and "worker.py" not in message
    works(ranks)


def test_a_keyboard_interrupt_of_the_cells_own_is_named(ranks):
    message, _ = fails(ranks, "if rank == 1:\n    raise KeyboardInterrupt('own')")
    assert message.startswith("rank 1 raised KeyboardInterrupt: own"), message
    works(ranks)


def test_a_group_that_a_cell_has_destroyed_is_made_again(ranks):
    """The last line of most scripts for torchrun; the first collective after it tells."""
    cell(ranks, "kept = rank\ndist.destroy_process_group()")
    cell(ranks, "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)")
    cell(ranks, "dist.destroy_process_group()")
    message, _ = fails(ranks, "dist.barrier()")
    assert "has not been initialized" in message
    assert message.endswith("made anew (wrap models and make sub-groups again).")
    works(ranks)
    cell(ranks, "dist.destroy_process_group()", [2])
    fails(ranks, "dist.barrier()")
    works(ranks)
    assert ranks["kept"] == [0, 1, 2, 3]


def test_a_process_that_a_cell_forks_ends_where_the_cell_ends(ranks, tmp_path):
    """Else it would be a second rank of the same number, and its parent would wait for ever."""
    forks = textwrap.dedent(f"""
        import os, sys
        child = os.fork()
        if child:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        else:
            sys.stderr = open({str(tmp_path)!r} + f"/{{rank}}", "a")
    """)
    cell(ranks, forks + "print('end', file=sys.stderr)")
    assert ranks["status"] == [0] * 4
    cell(ranks, forks + "child or 1 / 0")
    assert ranks["status"] == [1] * 4
    cell(ranks, forks + "child or sys.exit(5)")
    assert ranks["status"] == [5] * 4

    def forked():
        import os

        child = os.fork()
        return os.waitpid(child, 0)[1] if child else "no result of a rank"

    assert ranks.run(forked) == [0] * 4
    for rank in range(4):
        first, *_, last = (tmp_path / str(rank)).read_text().splitlines()
        assert (first, last) == ("end", "ZeroDivisionError: division by zero")
    works(ranks)


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
    assert seconds < SOON
    works(ranks)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux tells of a death by descriptor")
def test_what_a_rank_has_said_comes_before_the_news_of_its_death():
    """A verdict is made when the death is known, and quotes the last words."""
    sent, (read, write) = [], os.pipe()
    os.set_blocking(read, False)
    with subprocess.Popen([sys.executable, "-c", "import os; os._exit(7)"]) as process:
        ended = os.pidfd_open(process.pid)
        select.select([ended], [], [])
        agent = Agent.__new__(Agent)
        agent.client = SimpleNamespace(send=lambda kind, **fields: sent.append((kind, fields)))
        agent.poller = zmq.Poller()
        agent.pools = {
            1: PoolProcesses(1, 0, Path(), {read: (3, "err")}, {3: process.pid}, {ended: 3})
        }
        os.write(write, b"last words")
        agent._on_descriptor(ended)
    os.close(read)
    os.close(write)
    assert [kind for kind, _ in sent] == ["output", "dead"]
    assert sent[0][1]["data"] == b"last words"
    assert os.waitstatus_to_exitcode(sent[1][1]["status"]) == 7


def test_rank_that_dies_between_cells(ranks, capsys):
    works(ranks)
    for rank, how in ((1, signal.SIGKILL), (2, signal.SIGBUS), (3, signal.SIGKILL)):
        os.kill(ranks.pids[rank], how)
    while len(ranks.processes.dead) < 3:
        ranks.processes.receive(0.1)
    works(ranks)
    first, second, *_ = capsys.readouterr().out.splitlines()
    killed = "ranks 1, 3 were killed by SIGKILL (from outside, or memory ran out)"
    assert first == f"After the last cell {killed}; rank 2 was ended by SIGBUS."
    assert second == "ranks 0-3 started afresh; their variables are gone."


def test_the_agent_that_dies_between_cells(ranks, capsys):
    works(ranks)
    ranks.agent.process.kill()
    ranks.agent.process.wait()
    works(ranks)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "The process that watches the ranks ended, and they with it."
    assert second.startswith("ranks 0-3 started afresh")


def test_messages_in_a_loop_are_no_deadlock_and_the_launcher_survives_a_cut(ranks):
    # After connections were cut, elastic's own must live on: it would give up after 15 seconds.
    fails(ranks, "if rank: dist.barrier()")
    pids = ranks.pids
    cell(
        ranks,
        """
        import time
        begin, y = time.time(), torch.zeros(1)
        while y[0] == 0:  # several looks for a deadlock long
            for _ in range(50):
                if rank % 2:
                    dist.send(y, (rank + 1) % 4); dist.recv(y, rank - 1)
                else:
                    dist.recv(y, (rank - 1) % 4); dist.send(y, rank + 1)
            y[0] = float(rank == 0 and time.time() > begin + 4)
            dist.all_reduce(y)
        time.sleep(begin + 18 - time.time())  # costs the other tests nothing
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
    until = time.monotonic() + 30
    while held() - before > 50e6 and time.monotonic() < until:
        time.sleep(0.05)
    assert held() - before < 50e6
    ranks.cell("del pieces", ranks=[0])


@pytest.mark.parametrize("group", ["None", "dist.new_group()"])
def test_time_out_of_a_collective(group):
    """In a group of the learner's own too: torch's default there is half an hour."""
    with Ranks(2, timeout=3, default=False) as pool:
        message, seconds = fails(
            pool,
            f"""
            import time; group = {group}
            if rank == 0:
                time.sleep(100)
            dist.barrier(group=group)
            """,
        )
        assert message.startswith("rank 1 gave up after 3 s"), message
        assert "Ranks(2, timeout=12)" in message and "gave up waiting in barrier" in message
        assert "rank 0  interrupted" in message or "computing, line 4" in message, message
        assert seconds < 60


def interrupted_by_the_notebook_and_by_itself() -> tuple[bool, bool]:
    from dlcourse.ranks.worker.interrupt import Interrupt, from_notebook

    before, told = signal.getsignal(signal.SIGINT), []
    interrupt = Interrupt()
    interrupt.running = 7
    try:
        interrupt.request(7)
        time.sleep(5)
    except KeyboardInterrupt as error:
        told.append(from_notebook(error))
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        told.append(from_notebook(error))
    return tuple(told)


def test_an_interrupt_of_the_notebook_is_told_from_one_of_the_cell():
    """An exercise that raises KeyboardInterrupt itself has failed; one that is stopped has not."""
    with Ranks(1, device="cpu", default=False) as pool:
        assert pool.run(interrupted_by_the_notebook_and_by_itself) == [(True, False)]


WITH = """
if rank == 1:
    {ends}
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
    {waits}
"""
AFTER_WITH = "a = torch.ones(2, 2)\nmodes = torch.is_grad_enabled(), str((a @ a).dtype)"


@pytest.mark.parametrize("ends", ["1 / 0", "while True: pass"])
@pytest.mark.parametrize(
    "waits",
    [
        "dist.all_reduce(torch.zeros(3), async_op=True).wait()",
        "torch.distributed._functional_collectives.all_reduce("
        "torch.zeros(3), 'sum', dist.group.WORLD) + 1",
    ],
)
def test_a_with_that_is_cut_off_gives_back_what_it_has_set(ranks, waits, ends):
    """An interrupt came in its __exit__: later cells of that rank had no gradients, or bfloat16."""
    timer = interrupt_after(0.8) if "while" in ends else None
    with pytest.raises((RankError, RanksInterrupted)):
        cell(ranks, WITH.format(waits=waits, ends=ends))
    if timer:
        timer.join()
    cell(ranks, AFTER_WITH)
    assert ranks["modes"] == [(True, "torch.float32")] * 4


def test_what_finally_calls_is_called_after_a_wait_that_was_cut_off(ranks):
    """The interrupt that came during the wait was handled in that call, and ended it."""
    cleaned = """
    cleaned = []
    def clean(): cleaned.append(rank)
    if rank == 1: 1 / 0
    try:
        dist.irecv(torch.ones(1), 1).wait()
    finally:
        clean()
    """
    with pytest.raises(RankError, match="rank 1 raised ZeroDivisionError"):
        cell(ranks, cleaned)
    assert ranks["cleaned"] == [[0], [], [2], [3]]


class Slow:
    """A context that takes its time to be left."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.left = seconds, False

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            pass
        self.left = True


def interrupted_while_a_context_is_left(seconds: float) -> bool:
    """Whether it was left whole; in any case the interrupt arrives."""
    from dlcourse.ranks.worker.interrupt import Interrupt

    interrupt, over, context = Interrupt(), threading.Event(), Slow(seconds)
    interrupt.running = 7

    def ask() -> None:
        interrupt.request(7)
        while not over.wait(0.01):
            interrupt.again()

    try:
        with pytest.raises(KeyboardInterrupt):
            with context:
                threading.Timer(0.1, ask).start()
            time.sleep(60)
    finally:
        over.set()
    return context.left


def test_an_interrupt_lets_a_context_be_left_unless_that_takes_too_long():
    with Ranks(1, default=False) as pool:
        assert pool.run(interrupted_while_a_context_is_left, 0.5) == [True]
        assert pool.run(interrupted_while_a_context_is_left, 60.0) == [False]


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
        "if rank == 0:\n    while True: pass\ndist.recv(torch.ones(1), 0)",
        "if rank == 0:\n    while True: pass\ndist.irecv(torch.ones(1), 0).wait()",
        "if rank == 0:\n    while True: pass\ndist.all_reduce(torch.ones(1), async_op=True).wait()",
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
    assert time.monotonic() - started < 60
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


def test_an_interrupt_that_comes_late_is_not_the_next_cells():
    """Neither the notebook's for a cell that has ended, nor Jupyter's own for the whole group."""
    before = signal.getsignal(signal.SIGINT)
    try:
        interrupt = Interrupt()
        interrupt.running = 2
        interrupt.request(1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt.request(2)
            time.sleep(10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not interrupted


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
        ({"n": 2, "timeout": float("inf")}, "timeout=inf: must be a number of seconds from 0.1 to"),
        ({"n": 2, "timeout": float("nan")}, "timeout=nan"),
        ({"n": 2, "timeout": 1e10}, "timeout=10000000000.0"),
        ({"n": 2, "timeout": 1e-9}, "timeout=1e-09"),
        ({"n": 2, "timeout": True}, "timeout=True"),
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
    monkeypatch.setattr(machine, "memory_bytes", lambda: 2_000_000_000)
    with pytest.raises(ValueError, match=r"64 ranks need about 3\.. GB .* 2\.0 GB: at most"):
        Ranks(64)
    assert machine.default_ranks() == 4
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1_000_000_000)
    assert machine.default_ranks() == 2


def test_bad_cells_are_refused_without_losing_the_pool(ranks):
    with pytest.raises(ValueError, match="ranks=7: there are ranks 0-3"):
        cell(ranks, "1", [7])
    with pytest.raises(SyntaxError):
        cell(ranks, "for")
    works(ranks)


@pytest.mark.parametrize(
    "chosen", [2, "0,1", [0, "a"], [0.0], [True], [[0]], [None], ...], ids=repr
)
def test_ranks_that_are_no_numbers_are_refused_in_words(ranks, chosen):
    for call in (lambda: ranks.run(int, ranks=chosen), lambda: cell(ranks, "1", chosen)):
        with pytest.raises(ValueError, match=r"ranks=.*: give their numbers, as in ranks=\[0, 2\]"):
            call()


def test_ranks_may_be_numbers_of_numpy_or_a_generator(ranks):
    assert ranks.run(int, ranks=np.arange(2)) == [0, 0]
    assert ranks.run(int, ranks=(r for r in (1, 3))) == [0, 0]


def test_a_timer_may_stop_the_ranks_while_a_cell_runs():
    """The cell waited for ranks that were gone, for ever."""
    with Ranks(2, default=False) as pool:
        timer = threading.Timer(1.0, pool.stop)
        timer.start()
        message, _ = fails(pool, "import time; time.sleep(600)")
        timer.join()
        assert message.startswith("another thread ended the ranks while the cell ran"), message
        assert pool.state == "stopped"


def test_a_second_call_while_one_runs_is_refused_in_words(ranks):
    """From another thread: both would wait for the answers of the other."""
    gate = threading.Event()
    results: list[object] = []

    def first():
        gate.set()
        results.append(ranks.run(lambda: __import__("time").sleep(1.5) or 7))

    thread = threading.Thread(target=first)
    thread.start()
    gate.wait()
    while ranks.state != "running":
        time.sleep(0.01)
    refused = (lambda: ranks.run(int), lambda: cell(ranks, "1"), lambda: ranks["rank"])
    for call in refused:
        with pytest.raises(ValueError, match="they are busy with another call; wait until it has"):
            call()
    thread.join(30)
    assert results == [[7] * 4]
    works(ranks)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\nfor", "invalid syntax"),
        ('x = """abc', "unterminated triple-quoted"),
        ("x = 1\0", "null byte"),
        ("x = '\ud800'", "no Python source"),
        ("return 1", "'return' outside function"),
        ("x: global y", "invalid syntax"),
        ("1 + " * 100_000 + "1", "nested too deeply"),
        ("(" * 1000 + ")" * 1000, "too many nested parentheses"),
        ("import os\n%time os.getpid()", "the ranks run plain Python: write them in a cell"),
        ("!ls", "the ranks run plain Python: write them in a cell"),
        ("files = !ls", "the ranks run plain Python: write them in a cell"),
        ("print?", "the ranks run plain Python: write them in a cell"),
        ("import asyncio\nawait asyncio.sleep(0)", "asyncio.run(function()) runs one"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_words(source, words):
    with pytest.raises(SyntaxError) as caught:
        check(source)
    assert words in str(caught.value)


def test_equal_results_are_one_line():
    assert repr(Results({1: {"repr": "a"}, 0: {"repr": "a"}})) == "ranks 0-1: a"


# -- the observer ---------------------------------------------------------------------------------


class Told:
    """An observer that keeps what it is told."""

    def __init__(self, size: int) -> None:
        self.size, self.calls = size, []

    def __getattr__(self, name):
        return lambda *args, **options: self.calls.append((name, args, options))

    def named(self, name: str) -> list:
        return [
            (*args, *options.values()) for called, args, options in self.calls if called == name
        ]


def test_an_observer_is_told_what_the_ranks_do(monkeypatch):
    monkeypatch.setattr(observer, "_make", Told)
    monkeypatch.setenv("DLCOURSE_PANEL", "on")
    with Ranks(2, default=False) as pool:
        told = pool.observation.observer
        assert told.size == 2 and told.calls[0][0] == "display"
        assert told.named("at_rest") == [({0: "idle", 1: "idle"}, True)]
        source = "import time; time.sleep(0.5)\nx = torch.ones(1000); dist.all_reduce(x)"
        cell(pool, source, record=True)
        assert [rank["rank"] for rank in told.named("cell_runs")[-1][2]] == [0, 1]
        number, _, outcome, records, states = told.named("cell_ended")[0]
        assert (number, outcome, states) == (1, "done", {0: "idle", 1: "idle"})
        assert [record["comm"][0]["op"] for record in records] == ["all_reduce"] * 2
        fails(pool, "1 / 0")
        assert told.named("cell_ended")[1][2] == "failed"
        os.kill(pool.pids[1], signal.SIGKILL)
        until = time.monotonic() + 60
        while ({0: "idle", 1: "dead"}, False) not in told.named("at_rest"):
            assert time.monotonic() < until, told.named("at_rest")
            time.sleep(0.05)
        cell(pool, "1")
        afresh = [({0: "stopped", 1: "dead"}, False), ({0: "idle", 1: "idle"}, True)]
        assert told.named("at_rest")[-2:] == afresh


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


def test_restarted_ranks_have_what_the_notebook_has_now(ranks, tmp_path, monkeypatch):
    def look():
        import os
        import sys

        from dlcourse.words.strings import language

        have = os.environ.get("MY_SETTING"), os.environ.get("OLD_SETTING"), language()
        return *have, os.getcwd(), "/added/later" in sys.path

    monkeypatch.setenv("OLD_SETTING", "1")
    monkeypatch.delenv("MY_SETTING", raising=False)
    ranks.restart()
    assert ranks.run(look)[0][:2] == (None, "1")
    monkeypatch.setenv("MY_SETTING", "2")
    monkeypatch.delenv("OLD_SETTING")
    monkeypatch.setenv("DLCOURSE_LANG", "en")
    monkeypatch.setattr(sys, "path", [*sys.path, "/added/later"])
    monkeypatch.chdir(tmp_path)
    ranks.restart()
    assert ranks.run(look) == [("2", None, "en", str(tmp_path), True)] * 4
    with Ranks(2, default=False) as other:
        assert other.run(look) == [("2", None, "en", str(tmp_path), True)] * 2
    monkeypatch.undo()
    ranks.restart()
    works(ranks)


SHADOWED = """
import sys
from dlcourse import Ranks
if __name__ == "__main__":
    with Ranks(2) as ranks:
        ranks.cell("x = torch.ones(1); dist.all_reduce(x)")
        print(ranks["x"][0][0])
        sys.path.insert(0, "")
        ranks.restart()
        ranks.cell("import own_module, random; print(own_module.VALUE, random.random() < 1)")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_files_of_the_learner_are_not_taken_for_modules_of_the_engine(method, tmp_path):
    """Whatever name a file has: the ranks start, and find the learner's own modules."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    names = {*sys.stdlib_module_names, "torch", "numpy", "zmq", "psutil", "cloudpickle", "dlcourse"}
    for name in names:
        (folder / f"{name}.py").write_text("raise ImportError('the file of the learner')")
    (folder / "own_module.py").write_text("VALUE = 42")
    (tmp_path / "script.py").write_text(SHADOWED)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "DLCOURSE_START_METHOD": method},
        timeout=170,
    )
    own = ["[rank 0] 42 True", "[rank 1] 42 True"]
    assert done.stdout.splitlines() == ["2.0", *own], done.stdout + done.stderr


def test_processes_that_a_rank_starts_have_the_usual_signals_and_descriptors(ranks, tmp_path):
    def start(listing):
        import multiprocessing
        import os
        import signal
        import subprocess
        import time

        ends = []
        for number in (signal.SIGTERM, signal.SIGINT):
            started = subprocess.Popen(["sleep", "60"])
            started.send_signal(number)
            ends.append(started.wait(30))
            fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            fork.start()
            fork.terminate()
            fork.join(30)
            ends.append(fork.exitcode)
        os.system(f"ls /proc/self/fd > {listing}")
        return ends

    listing = tmp_path / "descriptors"
    ends = ranks.run(start, listing, ranks=[1])[0]
    assert ends == [-signal.SIGTERM, -signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM]
    if sys.platform == "linux":
        assert listing.read_text().split() == ["0", "1", "2", "3"]  # 3: what ls reads


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _more(pids: list[int], before: list[int]) -> int:
    return max(descriptors(pid) - then for pid, then in zip(pids, before, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_restarts_keep_no_descriptor(ranks):
    pids = [os.getpid(), ranks.agent.process.pid]
    ranks.restart()
    before = [descriptors(pid) for pid in pids]
    for _ in range(6):
        ranks.restart()
        Ranks(1, default=False).stop()
    # Threads of their own open and close sockets, and the agent takes up to one for each rank.
    until = time.monotonic() + 60
    while (more := _more(pids, before)) > 5 and time.monotonic() < until:
        time.sleep(0.1)
    assert more <= 5


def test_nothing_listens_beyond_this_machine(ranks, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")  # whatever a cluster's settings say
    ranks.restart()
    ranks.run(lambda: dist.new_group([0, 1]))
    family = [psutil.Process(ranks.agent.process.pid)]
    family += family[0].children(recursive=True)
    assert len(family) == 6  # the agent, a launcher, four ranks
    heard = []
    for process in family:
        look = getattr(process, "net_connections", None) or process.connections
        heard += [c.laddr.ip for c in look("inet") if c.status == psutil.CONN_LISTEN]
    assert heard and set(heard) <= {"127.0.0.1", "::1"}


def test_a_pool_that_does_not_come_up_leaves_the_one_before(ranks, monkeypatch):
    cell(ranks, "kept = rank")
    pool_module = sys.modules["dlcourse.ranks.notebook.pool"]
    monkeypatch.setattr(pool_module, "_default", ranks)
    for moment in (0.0, 0.05, 0.2):
        with monkeypatch.context() as patch:
            began = RankProcesses._wait_for_ranks

            def wait(self, began=began, moment=moment):
                interrupt_after(moment).join()
                return began(self)

            patch.setattr(RankProcesses, "_wait_for_ranks", wait)
            with pytest.raises(RanksInterrupted, match="interrupted before the 2 ranks were up"):
                Ranks(2)
        assert pool_module.default_pool() is ranks
    monkeypatch.setattr(RankProcesses, "_wait_for_ranks", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Ranks(2)
    monkeypatch.undo()
    works(ranks)
    assert ranks["kept"] == [0, 1, 2, 3]
    family = psutil.Process(ranks.agent.process.pid).children(recursive=True)
    until = time.monotonic() + 60
    while len(family) != 5 and time.monotonic() < until:  # a launcher and its four ranks
        time.sleep(0.1)
        family = psutil.Process(ranks.agent.process.pid).children(recursive=True)
    assert len(family) == 5


def test_an_interrupted_restart_can_be_begun_again(monkeypatch):
    with Ranks(2, default=False) as pool:
        began = RankProcesses._wait_for_ranks

        def wait(self):
            interrupt_after(0).join()
            return began(self)

        with monkeypatch.context() as patch:
            patch.setattr(RankProcesses, "_wait_for_ranks", wait)
            with pytest.raises(
                RanksInterrupted, match="restart\\(\\), or make new ones: ranks = Ranks"
            ):
                pool.restart()
            with pytest.raises(ValueError, match="these ranks are stopped"):
                cell(pool, "1")
            pool.processes.state = "lost"
            with pytest.raises(RanksInterrupted, match="Run a cell again: it starts them"):
                cell(pool, "1")
        assert repr(cell(pool, "1")) == "ranks 0-1: 1"


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
print(*ranks.pids, ranks.agent.process.pid, flush=True)
{then}
"""


@pytest.fixture
def short_path():
    """For TMPDIR: a socket's name has room for no longer one, and the engine goes to /tmp then."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


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
def test_nothing_is_left_when_the_notebook_ends(then, sent, short_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(then=then)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(short_path)},
    )
    pids = [int(x) for x in process.stdout.readline().split()]
    assert len(pids) == 3
    family = set(pids)
    if sent:
        family |= {c.pid for c in psutil.Process(process.pid).children(recursive=True)}
    time.sleep(0.3)
    if sent:
        process.send_signal(sent)
    process.wait(60)
    limit = time.monotonic() + 60  # a rank that computes looks for its parent once a second
    while time.monotonic() < limit and any(_alive(p) for p in family):
        time.sleep(0.05)
    assert not [p for p in family if _alive(p)]
    # The folder of its compiler is torch's own, made when it is imported.
    assert not [f for f in short_path.iterdir() if not f.name.startswith("torchinductor")]
    shared = [f.name for f in Path("/dev/shm").glob("*")]
    assert not [name for name in shared if family & {int(n) for n in re.findall(r"\d+", name)}]


FORKING = """
import os, time
from dlcourse import Ranks
ranks = Ranks(2)
child = os.fork()
if child == 0:
    time.sleep(100)
    os._exit(0)
print(child, *ranks.pids, ranks.agent.process.pid, flush=True)
time.sleep(100)
"""


def test_a_fork_of_the_notebook_keeps_no_rank_alive():
    process = subprocess.Popen([sys.executable, "-c", FORKING], stdout=subprocess.PIPE, text=True)
    child, *family = (int(x) for x in process.stdout.readline().split())
    try:
        assert len(family) == 3
        process.kill()
        process.wait(60)
        limit = time.monotonic() + 60
        while time.monotonic() < limit and any(_alive(p) for p in family):
            time.sleep(0.05)
        assert not [p for p in family if _alive(p)]
        assert _alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_temporary_files_of_ranks_go_with_the_notebook_or_its_agent(short_path):
    """Ranks are killed, at the end of a pool too: what they clear up at their end stays."""
    program = """
import os, signal
from dlcourse import Ranks
ranks = Ranks(2)
ranks.cell("import tempfile; place = tempfile.TemporaryDirectory(); path = place.name")
name = ranks["path"][0]
ranks.restart()
assert os.path.isdir(name)
os.kill(ranks.agent.process.pid, signal.SIGKILL)
ranks.agent.process.wait()
ranks.cell("import tempfile; place = tempfile.TemporaryDirectory(); path = place.name")
assert not os.path.exists(name)
assert os.path.isdir(ranks["path"][0])
"""
    environment = {**os.environ, "TMPDIR": str(short_path)}
    for spawn in ({}, {"DLCOURSE_START_METHOD": "spawn"}):
        done = subprocess.run([sys.executable, "-c", program], env=environment | spawn)
        assert done.returncode == 0 and not list(short_path.glob("dlc*"))


def test_what_a_killed_family_has_left_goes_with_the_next_start(short_path):
    """All at once, as a container ends that has no memory left: nobody is there to clear up."""
    program = """
import os, time
from dlcourse import Ranks
from dlcourse.explorer import Film
film, ranks = Film(print), Ranks(2)
print(ranks.agent.process.pid, *ranks.pids, flush=True)
time.sleep(100)
"""
    environment = {**os.environ, "TMPDIR": str(short_path)}
    start = partial(subprocess.Popen, [sys.executable, "-c", program], stdout=subprocess.PIPE)
    with start(text=True, env=environment) as killed, start(text=True, env=environment) as lives:
        agents = [int(p.stdout.readline().split()[0]) for p in (killed, lives)]
        family = psutil.Process(agents[0]).children(recursive=True)
        for process in (*family, psutil.Process(agents[0]), psutil.Process(killed.pid)):
            process.suspend()
        own = set(lives_in(short_path, (killed.pid, agents[0])))
        for process in (psutil.Process(killed.pid), psutil.Process(agents[0]), *family):
            process.kill()
        killed.wait(60)
        psutil.wait_procs(family, timeout=60)
        others = set(lives_in(short_path, (lives.pid, agents[1])))
        assert own and others and not own & others
        for mark in short_path.glob(f"*/{MARK}"):
            os.utime(mark, (0, 0))
        (short_path / "dlcourse-film-mine").mkdir()  # a learner's own, whatever its name
        subprocess.run([sys.executable, "-c", SCRIPT.format(then="pass")], env=environment)
        left = {path.name for path in short_path.iterdir()}
        lives.kill()
    assert not own & left
    assert others | {"dlcourse-film-mine"} <= left


def lives_in(place, pids):
    """Names of the directories in `place` that these processes keep locked."""
    opened = (file.path for pid in pids for file in psutil.Process(pid).open_files())
    return [
        Path(path).parent.name for path in opened if path.startswith(str(place)) and MARK in path
    ]


def test_no_socket_is_left_to_join_once_the_ranks_are_connected(ranks):
    files = psutil.Process(ranks.pids[0]).open_files()
    assert not Path(ranks.agent.directory).exists()
    assert not [f for f in files if f.path.endswith("/s")]


def is_imported(name):
    return name in sys.modules


def test_what_is_preloaded_is_in_all_ranks_before_they_import_anything():
    found = []
    for preload in (None, "wave", "nowhere_at_all"):  # what cannot be imported is left out
        with Ranks(2, default=False, preload=preload) as pool:
            found.append(pool.run(is_imported, "wave"))
    assert found == [[False] * 2, [True] * 2, [True] * 2]  # it stays with the one who forks ranks


def memory_with_holes(seconds):
    """In a rank: MB before, with 200 MB of which all but the end is free, and a little later."""
    from dlcourse.measure.process_memory import pss_bytes

    before = pss_bytes()
    blocks = [bytearray(100_000) for _ in range(2000)]  # too small to be given back one by one
    for block in blocks:
        block[::4096] = b"x" * len(block[::4096])
    end = blocks[-1]
    del blocks, block
    with_holes = pss_bytes()
    limit = time.monotonic() + seconds
    while pss_bytes() - before > 50e6 and time.monotonic() < limit:
        time.sleep(0.1)
    return before / 1e6, with_holes / 1e6, pss_bytes() / 1e6, len(end)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps what is freed below")
def test_memory_that_a_cell_has_freed_goes_back_while_it_still_runs(ranks):
    for before, with_holes, after, _ in ranks.run(memory_with_holes, 30):
        assert with_holes - before > 100  # else there is nothing to give back
        assert after - before < 50


# ------------------------------------------------------------- a classroom: many ranks, few cores


def test_a_rank_that_waits_for_a_core_is_not_given_up(monkeypatch):
    """One rank fails while another, stopped, gets no core for longer than a quiet machine waits."""
    monkeypatch.setattr(machine, "crowding", lambda: 4.0)
    away = 2 * running_cell.AFTER_FAILURE + running_cell.AFTER_CUT + 2
    with Ranks(2) as pool:
        pids = pool.run(os.getpid)
        pool.cell("kept = 5")
        timer = threading.Timer(away, os.kill, (pids[1], signal.SIGCONT))
        timer.start()
        try:
            with pytest.raises(RankError):
                pool.cell(
                    "import os, signal\n"
                    "if rank == 0:\n"
                    "    raise ValueError('at once')\n"
                    "os.kill(os.getpid(), signal.SIGSTOP)"
                )
        finally:
            timer.cancel()
            timer.join()
            os.kill(pids[1], signal.SIGCONT)
        assert pool.run(os.getpid) == pids
        assert pool["kept"] == [5, 5]


def test_a_quiet_machine_waits_no_longer_and_a_crowded_one_not_for_ever(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    assert running_cell.patience(5.0) == 5.0
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 0.0, 0.0))
    assert running_cell.patience(5.0) == 5.0 * running_cell.MOST


def test_a_stack_is_told_where_python_names_no_line(monkeypatch):
    """Between two lines a frame may have none: frame.f_lineno is None then."""
    code = SimpleNamespace(co_filename="<ranks cell 1>", co_name="f")
    outer = SimpleNamespace(f_code=code, f_lineno=3, f_back=None, f_locals={})
    inner = SimpleNamespace(f_code=code, f_lineno=None, f_back=outer, f_locals={})
    monkeypatch.setattr(sys, "_current_frames", lambda: {threading.get_ident(): inner})
    flights = SimpleNamespace(last=dict, members=dict, complete=True, name=str)
    waits = SimpleNamespace(now=None, posted={}, lost=lambda: None)
    assert Whereabouts(flights, waits).now()["line"]["line"] == 3


def test_a_question_that_fails_leaves_no_deaf_rank(capfd):
    """Its second thread goes on: what comes next is answered."""
    whereabouts = SimpleNamespace(now=lambda: 1 / 0)
    before = signal.getsignal(signal.SIGINT)
    interrupt = Interrupt()
    signal.signal(signal.SIGINT, before)
    control = Control(
        "ipc:///nowhere",
        b"0:0",
        os.getppid(),
        interrupt=interrupt,
        connections=None,
        whereabouts=whereabouts,
        recorder=None,
    )
    for message in ({"kind": "where", "id": 1}, {"kind": "cell", "id": 2}):
        control._take(message, SimpleNamespace(send=print))
    assert control.inbox.get_nowait()["id"] == 2
    assert "ZeroDivisionError" in capfd.readouterr().err
