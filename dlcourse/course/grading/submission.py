"""One submission, shut in: run its cells in a kernel, then judge what its exercises ask for.

    python -m dlcourse.course.grading.submission RESULT_FD PROCESSES < notebook

PROCESSES 0: it is not shut in, so it keeps its user, and others' processes are not its to end.

Writes JSON lines: first ``{"lesson": …}``, then one for each exercise, at last
``{"status": …, "note": …}``. Each is written when it is known, so that a limit leaves the others.
"""

from __future__ import annotations

import ast
import base64
import ctypes
import json
import os
import queue
import re
import resource
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any

MODULE = "dlcourse.course.grading.submission"  # its own name, also where it is run as a program
NOBODY = 61_111  # the user and group that root becomes: of no account, so nothing is theirs
CELL = 180.0  # seconds for a cell; then it is interrupted, and the next one has its turn
GRACE = 20.0  # seconds for a cell to end when it is interrupted
PR_SET_DUMPABLE = 4
# What neither defines anything nor is believed: `check` would cost the time of a judgement twice.
SKIPPED = re.compile(r"\s*(check|hint|solution|quiz|explore)\([^\n]*\)\s*")
ASKED = re.compile(r"""check\(\s*["'](\d\d)\.\w+["']""")


def main(result: int, processes: int) -> None:
    """Judge the notebook that standard input holds."""
    given = sys.stdin.buffer.read()
    with open(result, "w", encoding="utf-8", buffering=1) as said:
        os.set_inheritable(result, False)

        def say(**values: Any) -> None:
            said.write(json.dumps(values, ensure_ascii=False) + "\n")

        if processes:
            _become_ordinary(processes)
        try:
            _judge(given, say, alone=processes > 0)
        except Exception as error:  # whatever it is, it is this submission's row
            say(status="failed", note=f"{type(error).__name__}: {str(error)[:300]}")


def _become_ordinary(processes: int) -> None:
    """Without a right and within the limits, where other programs cannot look into this one."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)  # nor write into its result


def _judge(given: bytes, say: Any, *, alone: bool) -> None:
    """alone: in a namespace of its own, where all processes are the submission's."""
    import nbformat

    try:
        notebook = nbformat.reads(given.decode("utf-8"), as_version=4)
        cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    except Exception as error:  # of JSON, of its depth, of its schema
        return say(status="not a notebook", note=f"{type(error).__name__}: {str(error)[:200]}")
    lesson = _lesson(cells)
    if lesson is None:
        return say(status="no exercise", note="no cell has an exercise of a lesson")

    from dlcourse.course.exercises import lesson_exercises
    from dlcourse.course.exercises.checking import judged

    say(lesson=lesson)
    exercises = lesson_exercises(lesson)
    kernel = Kernel()
    try:
        ended = kernel.run_all([cell.source for cell in cells])
        found = {exercise.id: kernel.defined(exercise.id) for exercise in exercises}
    finally:
        kernel.end(alone=alone)
    for exercise in exercises:
        passed, good = False, 0
        # What a kernel sends may be anything at all, and then it is no answer
        with suppress(Exception):
            result = judged(exercise, found[exercise.id] or {"problem": "no_ranks"})
            passed, good = result.passed, [*result.cases.values()].count(True)
        say(exercise=exercise.id, passed=passed, good=good, of=len(exercise.cases))
    say(status="crashed" if kernel.died else "graded", note=ended)


def _lesson(cells: list[Any]) -> str | None:
    """Two digits: the lesson of which the notebook has most exercises."""
    from dlcourse.course.exercises import lesson_exercises

    named: Counter[str] = Counter()
    for cell in cells:
        named.update(ASKED.findall(cell.source))
        if re.fullmatch(r"\d\d\.\w+", str(cell.metadata.get("exercise", ""))):
            named[cell.metadata["exercise"][:2]] += 1
    return next((n for n, _ in named.most_common() if lesson_exercises(n)), None)


class Kernel:
    """A kernel in which cells are run one after the other, whatever becomes of each."""

    def __init__(self) -> None:
        from jupyter_client.manager import KernelManager

        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel()
        self.client = self.manager.blocking_client()
        # What cells put out is not read: endless output fills nobody's memory but the kernel's
        self.client.start_channels(iopub=False, stdin=False, hb=False)
        self.died = False

    def run_all(self, sources: list[str]) -> str:
        """Run the cells; says which one was interrupted, and in which one the kernel ended."""
        notes = []
        for number, source in enumerate(sources, start=1):
            if SKIPPED.fullmatch(source):
                continue
            if self.run(source) is None:
                if self.died:
                    return f"the kernel ended in code cell {number}"
                notes.append(str(number))
        return f"code cells stopped after {CELL:.0f} s: {', '.join(notes)}" if notes else ""

    def run(self, code: str, asked: dict[str, str] | None = None) -> dict[str, Any] | None:
        """The kernel's reply; None where the cell took too long or the kernel ended."""
        if self.died:
            return None
        message = self.client.execute(
            code, user_expressions=asked or {}, allow_stdin=False, stop_on_error=False
        )
        interrupted = False
        limit = time.monotonic() + CELL
        while True:
            with suppress(queue.Empty):
                reply = self.client.get_shell_msg(timeout=1)
                if reply["parent_header"].get("msg_id") == message:
                    return None if interrupted else reply["content"]
                continue
            if not self.manager.is_alive():
                self.died = True
                return None
            if time.monotonic() > limit:
                if interrupted:  # it does not let itself be stopped
                    self.died = True
                    return None
                interrupted = True
                limit = time.monotonic() + GRACE
                self.manager.interrupt_kernel()

    def defined(self, id: str) -> dict[str, Any] | None:
        """What was defined for an exercise, packed; bytes that nothing here unpickles."""
        call = f"__import__('{MODULE}', fromlist=['packed']).packed('{id}')"
        reply = self.run("None", {"packed": call})
        if reply is None:
            return None
        try:
            text = ast.literal_eval(reply["user_expressions"]["packed"]["data"]["text/plain"])
            read = json.loads(text)
            read |= {"payload": base64.b64decode(read["payload"])} if "payload" in read else {}
        except (TypeError, KeyError, ValueError, SyntaxError, RecursionError):
            return None
        return read

    def end(self, *, alone: bool) -> None:
        """End the kernel, and whatever it has started, also what has lost its parent since."""
        import psutil

        self.client.stop_channels()
        family = psutil.Process().children(recursive=True)
        with suppress(Exception):
            self.manager.shutdown_kernel(now=True)
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        if alone:
            with suppress(ProcessLookupError):
                os.kill(-1, 9)  # all in this namespace but this process and its first


def packed(id: str) -> str:
    """Called in the submission's kernel: what it has defined for an exercise, as JSON."""
    from dlcourse.course.exercises.checking import fetched
    from dlcourse.course.exercises.registry import find_exercise

    found = fetched(find_exercise(id))
    if "payload" in found:
        found["payload"] = base64.b64encode(found["payload"]).decode()
    return json.dumps(found, default=str)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
