"""The `%%ranks` cell magic."""

from __future__ import annotations

import argparse
import shlex
from typing import Any, NoReturn

from dlcourse.ranks.errors import CellError, expect_failure
from dlcourse.ranks.notebook.pool import Ranks, default_pool
from dlcourse.ranks.source import in_few_lines

USAGE = "%%ranks [0,2] [--fast] [--as NAME] [--fails TEXT]"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"%%ranks: {message}. Write {USAGE}")


def _arguments(line: str) -> argparse.Namespace:
    parser = _Parser(prog="%%ranks", add_help=False)
    parser.add_argument("ranks", nargs="?")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--as", dest="name", metavar="NAME")
    parser.add_argument("--fails", metavar="TEXT")
    arguments = parser.parse_args(shlex.split(line))
    if arguments.name is not None and not arguments.name.isidentifier():
        parser.error(f"--as {arguments.name!r} is not a name that a variable can have")
    if arguments.name is not None and arguments.fast:
        parser.error("--fast records nothing that --as could keep: leave one of them out")
    return arguments


def _numbers(text: str | None) -> list[int] | None:
    """ "0,2" → [0, 2]; "0-2" → [0, 1, 2]."""
    if text is None:
        return None
    try:
        numbers: list[int] = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
        return numbers
    except ValueError:
        raise ValueError(f"%%ranks: {text!r} names no ranks. Write {USAGE}") from None


def ranks_magic(line: str, source: str) -> Any:
    """Run a cell in every rank.

    %%ranks              in all ranks, recorded (`ranks.last` holds what was measured)
    %%ranks 0,2          in some of them
    %%ranks --fast       without the recorder, for honest times
    %%ranks --as NAME    what was measured is kept in the notebook's variable NAME
    %%ranks --fails X    the cell must fail with a message that says X
    """
    arguments = _arguments(line)
    pool: Ranks = default_pool()
    chosen = _numbers(arguments.ranks)
    source = "\n" * _lines_above(source) + source  # lines are counted as the editor does
    if arguments.fails is None:
        shown = _run(pool, source, chosen, record=not arguments.fast)
        if arguments.name is not None:
            _shell().user_ns[arguments.name] = pool.last
        return shown
    with expect_failure(arguments.fails):
        _run(pool, source, chosen, record=not arguments.fast)
    return None


def _run(pool: Ranks, source: str, chosen: list[int] | None, *, record: bool) -> Any:
    try:
        return pool.cell(source, chosen, record=record)
    except SyntaxError as error:  # for which IPython would show its own frames
        raise CellError(in_few_lines(error)) from None


def _lines_above(source: str) -> int:
    """How many lines stand above a source in the cell that the learner sees: 1, the magic's own."""
    shell = _shell()
    history = shell.history_manager.input_hist_raw if shell is not None else []
    body = source.strip("\n")
    if history and body:
        above, found, below = history[-1].rpartition(body)
        if found and "%%ranks" in above and not below.strip():
            leading = len(source) - len(source.lstrip("\n"))
            return above.count("\n") - leading
    return 1


def _shell() -> Any:
    from IPython import get_ipython

    return get_ipython()


def register() -> None:
    """Make `%%ranks` known to the notebook, if this runs in one."""
    shell = _shell()
    if shell is not None:
        shell.register_magic_function(ranks_magic, "cell", "ranks")
