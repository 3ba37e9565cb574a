"""The ranks in a real Jupyter kernel: cells, messages, interrupt, restart, death."""

from __future__ import annotations

import re
import signal
import sys
import time
from queue import Empty
from typing import Any

import psutil
import pytest
from jupyter_client.manager import KernelManager

SET_UP = "from dlcourse import Ranks, expect_failure\nranks = Ranks(2)"
PIDS = "import os; print([os.getpid(), *ranks.pids, ranks.agent.process.pid])"


class Kernel:
    """A kernel and what its cells print."""

    def __init__(self, manager: KernelManager | None = None, **options: Any) -> None:
        self.manager = manager or KernelManager()
        self.manager.start_kernel(**options)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def restart(self) -> None:
        """Until cells' messages come: what the old kernel sent last is no sign of the new one's."""
        self.manager.restart_kernel(now=False)
        self.client.wait_for_ready(timeout=60)
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            try:
                self.finish(self.client.kernel_info(), timeout=1)
            except (Empty, TimeoutError):
                continue
            return
        raise TimeoutError("no message of the new kernel")

    def start(self, code: str) -> str:
        return self.client.execute(code)

    def finish(self, message_id: str, timeout: float = 120) -> str:
        """All that a cell shows: streams, results, errors; display data by its types."""
        text, limit = "", time.monotonic() + timeout
        while time.monotonic() < limit:
            message = self.client.get_iopub_msg(timeout=timeout)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                text += content["text"]
            elif kind == "error":
                text += "\n".join(content["traceback"])
            elif kind in ("execute_result", "display_data"):
                text += content["data"].get("text/plain", "") + "\n"
                text += "".join(f"<{t}>" for t in content["data"] if "widget" in t)
            elif kind == "comm_open":
                text += "<comm>"
            elif kind == "status" and content["execution_state"] == "idle":
                return text
        raise TimeoutError(text)

    def until(self, message_id: str, word: str) -> None:
        """Wait until a cell has printed a word."""
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            own = message["parent_header"].get("msg_id") == message_id
            if own and message["msg_type"] == "stream" and word in message["content"]["text"]:
                return

    def run(self, code: str, timeout: float = 120) -> str:
        return self.finish(self.start(code), timeout)

    def pids(self) -> list[int]:
        text = self.run(PIDS)
        assert text.startswith("["), text
        return [int(x) for x in re.findall(r"\d+", text)]


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    assert "Traceback" not in kernel.run(SET_UP)
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


def runs(pid: int) -> bool:
    try:  # a zombie has ended; whoever is its parent now only has to collect it
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pids: list[int], seconds: float = 30.0) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if not any(map(runs, pids)):
            return True
        time.sleep(0.05)
    return False


def test_cells_run_in_the_ranks(kernel):
    assert kernel.run("%%ranks\nprint('hello')\nrank * 2") == (
        "[rank 0] hello\n[rank 1] hello\nrank 0: 0\nrank 1: 2\n"
    )
    assert kernel.run("%%ranks 1\nrank") == "rank 1: 1\n"
    assert kernel.run("import sys; print('torch' in sys.modules)") == "False\n"


def test_a_failure_is_one_message_without_the_engine(kernel):
    text = kernel.run("%%ranks\nx = 1\nif rank == 1:\n    x / 0")
    assert text.startswith("rank 1 raised ZeroDivisionError")
    assert "line 4: x / 0" in text and "pool.py" not in text
    text = kernel.run("%%ranks --fails ZeroDivisionError\n1 / 0")
    assert re.match("ranks? [01-]+ raised ZeroDivisionError", text)  # a slow rank still computes


KILL = """
import os, signal
os.kill(ranks.pids[1], signal.SIGKILL)
while not ranks.processes.dead:
    ranks.processes.receive(0.1)
"""


def test_a_rank_killed_between_cells_is_named(kernel):
    assert kernel.run(KILL) == ""
    assert kernel.run("%%ranks\n1").splitlines() == [
        "After the last cell rank 1 was killed by SIGKILL (from outside, or memory ran out).",
        "ranks 0-1 started afresh; their variables are gone.",
        "ranks 0-1: 1",
    ]


def test_lines_are_counted_as_the_editor_does(kernel):
    for above in ("", "\n\n", "%%time\n"):
        text = kernel.run(f"{above}%%ranks\n\nx = 1\nx / 0\n")
        line = 4 + above.count("\n")
        assert f", line {line}: x / 0" in text, text
    source = "%%ranks\ndef f():\n    return 1 / 0\nimport inspect\nprint(inspect.getsource(f))"
    assert "[rank 0] def f():\n[rank 0]     return 1 / 0" in kernel.run(source)
    assert ", line 3: return 1 / 0" in kernel.run("%%ranks\nf()")
    text = kernel.run("ranks.cell('x = 1\\nx / 0')")
    assert ", line 2: x / 0" in text


def test_a_syntax_error_is_a_few_lines(kernel):
    text = kernel.run("%%ranks\nx = 1\nfor y in:\n    pass")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert len(lines) == 4, text
    assert "line 3" in lines[0] and lines[1].strip() == "for y in:"
    assert lines[3] == "SyntaxError: invalid syntax"
    for source, words in [('x = """a', "unterminated"), ("!ls", "plain Python"), ("a\0", "null")]:
        text = kernel.run("%%ranks\n" + source)
        assert words in text and len(text.splitlines()) <= 4, text
    assert "SyntaxError" in kernel.run("%%ranks --fails SyntaxError\nfor")
    assert kernel.run("%%ranks\n1") == "ranks 0-1: 1\n"


def test_wrong_arguments_of_the_magic(kernel):
    assert "there are ranks 0-1" in kernel.run("%%ranks 7\n1")
    assert "names no ranks" in kernel.run("%%ranks all\n1")
    assert "unrecognized arguments" in kernel.run("%%ranks --quick\n1")
    assert "'2x' is not a name" in kernel.run("%%ranks --as 2x\n1")
    assert "--fast records nothing" in kernel.run("%%ranks --fast --as run\n1")
    assert kernel.run("%%ranks\n1") == "ranks 0-1: 1\n"


def test_a_run_is_kept_under_a_name_whatever_runs_later(kernel):
    kernel.run("%%ranks --as sums\ndist.all_reduce(torch.ones(5))")
    kernel.run("%%ranks\ndist.barrier()")
    print_bytes = "print(sums.comm.ranks[0]['ops']['all_reduce']['bytes'])"
    assert kernel.run(print_bytes) == "20\n"


def test_no_panel_without_a_front_end(kernel):
    assert kernel.run("with Ranks(2, default=False) as other: print(other)") == (
        "Ranks(2, cpu, ready)\n"
    )


def test_interrupt_of_a_stuck_collective(kernel):
    kernel.run("%%ranks\nkept = rank")
    stuck = "%%ranks\nimport time\nif rank == 0:\n    time.sleep(1000)\ndist.barrier()"
    message = kernel.start(stuck)
    time.sleep(1.5)
    started = time.monotonic()
    kernel.manager.interrupt_kernel()
    text = kernel.finish(message)
    assert "interrupted" in text and "rank 1  waiting in barrier" in text
    assert "rank 0  computing, line 4: time.sleep(1000)" in text
    assert (
        time.monotonic() - started < 60
    )  # a busy machine gives ranks more time; the cell would sleep for 1,000 s
    assert kernel.run("%%ranks\ndist.barrier(); kept") == "rank 0: 0\nrank 1: 1\n"


def test_two_stops_of_an_impatient_person_are_one(kernel, tmp_path):
    kernel.run("%%ranks\nkept = rank + 5")
    pids = kernel.pids()
    for source in (
        "import time; time.sleep(1000)",
        "if rank == 0:\n    dist.barrier()\nwhile True: 1",
    ):
        begun = tmp_path / f"{len(source)}"
        message = kernel.start(f"%%ranks\nopen({str(begun)!r}, 'w').close()\n{source}")
        while not begun.exists():
            time.sleep(0.1)
        time.sleep(1.0)
        for _ in range(3):
            kernel.manager.interrupt_kernel()
            time.sleep(0.15)
        text = kernel.finish(message)
        assert "interrupted" in text and "KeyboardInterrupt" not in text, text
        message = kernel.start("print('begun', flush=True)\nwhile True: pass")
        kernel.until(message, "begun")
        kernel.manager.interrupt_kernel()  # of the next cell: it counts, however soon it comes
        assert "KeyboardInterrupt" in kernel.finish(message)
        assert kernel.run("%%ranks\nkept") == "rank 0: 5\nrank 1: 6\n"
    assert kernel.pids() == pids


def test_stop_while_ranks_start_leaves_what_was_there(kernel):
    """At whatever moment it comes: the ranks of before, or the new ones, never neither."""
    kernel.run("ranks = Ranks(2)")
    kernel.run("%%ranks\nkept = rank")
    size = 2
    for moment in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        message = kernel.start(f"print('begun')\nranks = Ranks({5 - size})")
        kernel.until(message, "begun")
        time.sleep(moment)
        kernel.manager.interrupt_kernel()
        text = kernel.finish(message)
        # The press may hit IPython itself, which has just begun the cell, or ends it.
        beside = "Traceback" in text and "dlcourse" not in text
        assert beside or "Traceback" not in text, text
        if "interrupted before" in text:
            assert f"Ranks({size}, cpu, ready) is still there" in text
        elif beside:
            size = int(re.match(r"Ranks\((\d)", kernel.run("print(ranks)"))[1])
            kernel.run("%%ranks\nkept = rank")
        else:
            assert not text.strip(), text
            size = 5 - size
            kernel.run("%%ranks\nkept = rank")
        assert kernel.run("print(ranks)") == f"Ranks({size}, cpu, ready)\n"
        assert (
            kernel.run("%%ranks\nworld_size, kept == rank")
            == f"ranks 0-{size - 1}: ({size}, True)\n"
        )
    kernel.run("ranks = Ranks(2)")


def test_stop_while_the_first_ranks_start(kernel):
    for moment in (0.0, 0.3, 1.0):
        kernel.run("ranks.stop(); ranks.agent.close(); ranks.__exit__(); del ranks")
        message = kernel.start("print('begun')\nranks = Ranks(2)")
        kernel.until(message, "begun")
        time.sleep(moment)
        kernel.manager.interrupt_kernel()
        text = kernel.finish(message)
        assert "Traceback" not in text, text
        if "interrupted before" in text:
            assert "Run the cell with Ranks(...) again" in text
            assert "Make them first" in kernel.run("%%ranks\n1")
        assert "Traceback" not in kernel.run("ranks = Ranks(2)")
        assert kernel.run("%%ranks\n1") == "ranks 0-1: 1\n"


def test_files_beside_the_notebook_are_not_taken_for_modules_of_the_engine(tmp_path):
    for name in (*sys.stdlib_module_names, "torch", "numpy", "cloudpickle", "psutil"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the file of the learner')")
    (tmp_path / "own_module.py").write_text("VALUE = 42")
    kernel = Kernel(cwd=str(tmp_path))
    try:
        assert kernel.run(SET_UP) == ""
        text = kernel.run("%%ranks\nimport own_module\nown_module.VALUE")
        assert text == "ranks 0-1: 42\n"
        assert kernel.run("ranks.restart(); print(ranks.run(lambda: 1))") == "[1, 1]\n"
        assert kernel.run("import own_module; print(own_module.VALUE)") == "42\n"
    finally:
        kernel.client.stop_channels()
        kernel.manager.shutdown_kernel(now=True)


def test_a_second_pool_replaces_the_first(kernel):
    old = kernel.pids()[1:-1]
    assert kernel.run("ranks = Ranks(3)\nprint(ranks)") == "Ranks(3, cpu, ready)\n"
    assert gone(old)
    assert kernel.run("%%ranks\nworld_size") == "ranks 0-2: 3\n"


def test_what_lost_ranks_knew_is_named_with_its_cell(kernel):
    """In words and numbers that the notebook shows: `[5]` stands beside the cell."""
    kernel.run("import dlcourse; dlcourse.lesson(lang='en'); ranks = Ranks(2)")
    number = int(kernel.run("print(len(In) - 1)"))
    kernel.run("%%ranks\nimport math\nclass Scale:\n    factor = 3")
    kernel.run("%%ranks\nscale = Scale()")
    kernel.run("%%ranks\nscale.factor")  # defines nothing
    kernel.run("%%ranks 1\nonly_here = 1")
    text = kernel.run("%%ranks\nonly_here")
    assert "only_here = 1" in text and "It ran in rank 1 only" in text
    text = kernel.run("%%ranks 1\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert "lists the cells to run again" in text
    text = kernel.run("%%ranks\nscale.factor")
    assert f"The cell that defines `scale`: [{number + 2}] scale = Scale()" in text, text
    assert "run that cell again" in text
    again = kernel.run("ranks").splitlines()
    assert again[0] == "Ranks(2, cpu, ready)"
    assert again[2:] == [
        f"  [{number + 1}] class Scale:",
        f"  [{number + 2}] scale = Scale()",
        f"  [{number + 4}] only_here = 1",
    ]
    # What was run again is off the list; a name that no cell defined brings no advice.
    kernel.run("%%ranks\nimport math\nclass Scale:\n    factor = 3")
    assert "class Scale" not in kernel.run("ranks")
    assert "defines" not in kernel.run("%%ranks\nnowhere")
    assert "scale = Scale()" in kernel.run("ranks['scale']")


def test_a_name_that_a_cell_has_deleted_is_named_with_both_cells(kernel):
    """A lesson's cell that frees what it has compared, run twice in a row."""
    kernel.run(SET_UP)
    number = int(kernel.run("print(len(In) - 1)"))
    kernel.run("%%ranks\nbig = 7")
    frees = "%%ranks\nsame = big == 7\ndel big"
    kernel.run(frees)
    text = kernel.run(frees)
    assert "NameError: name 'big' is not defined" in text
    assert f"The cell that defines `big`: [{number + 1}] big = 7" in text
    assert f"by the cell: [{number + 3}] same = big == 7" in text
    kernel.run("%%ranks\nbig = 7")
    assert kernel.run(frees) == ""
    kernel.run("%%ranks\nhere = 1\ndel here")  # bound and deleted by one cell: no cell helps
    assert "defines" not in kernel.run("%%ranks\nhere")


def test_restart_leaves_nothing(kernel):
    pids = kernel.pids()[1:]
    kernel.restart()
    assert gone(pids)
    assert "there are no ranks yet" in kernel.run("import dlcourse\n") + kernel.run("%%ranks\n1")
    kernel.run(SET_UP)
    assert kernel.run("%%ranks\n1 + 1") == "ranks 0-1: 2\n"


def test_a_kernel_with_ranks_ends_by_itself(tmp_path):
    """Jupyter kills one that takes long, and then what it should do at its end is not done."""
    kernel = Kernel()
    done = tmp_path / "done"
    kernel.run(SET_UP)
    kernel.run(f"import atexit, pathlib; atexit.register(pathlib.Path({str(done)!r}).touch)")
    pids = kernel.pids()
    kernel.client.stop_channels()
    # Half of it until a kernel is killed; ipykernel waits 29 s for children that seem to live.
    kernel.manager.shutdown_wait_time = 40
    kernel.manager.shutdown_kernel()
    assert done.exists()
    assert gone(pids)


def test_killed_kernel_leaves_nothing(kernel):
    pids = kernel.pids()
    kernel.start("%%ranks\nwhile True: pass")
    time.sleep(0.5)
    psutil.Process(pids[0]).send_signal(signal.SIGKILL)
    assert gone(pids[1:])
