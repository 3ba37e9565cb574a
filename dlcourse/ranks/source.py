"""The source of a cell: compiled as plain Python does it, and what is said where that fails."""

from __future__ import annotations

import ast
import re
import traceback
import warnings
from types import CodeType

# `%time f()`, `!ls`, `files = !ls`, `print?`
_NOTEBOOK_ONLY = re.compile(r"\s*([\w, .]+=\s*)?[%!]\S|\s*\?|.*\?\s*$")


def compiled(source: str, filename: str) -> tuple[CodeType, CodeType | None]:
    """The statements of a cell and, apart from them, its last expression if it ends with one.

    Nothing of this module is inherited: annotations are what plain Python makes of them.
    """
    tree = ast.parse(source, filename)
    last = None
    if tree.body and isinstance(found := tree.body[-1], ast.Expr):
        tree.body.pop()
        last = compile(ast.Expression(found.value), filename, "eval", dont_inherit=True)
    return compile(tree, filename, "exec", dont_inherit=True), last


def check(source: str) -> None:
    """Refuse a cell that no rank could compile: SyntaxError with the line, and what helps."""
    if not isinstance(source, str):
        raise TypeError(f"source={source!r}: a cell is a string of Python source")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the ranks show them
            compiled(source, "<ranks cell>")
    except SyntaxError as error:
        lines = source.splitlines()
        if error.lineno and not error.text and error.lineno <= len(lines):
            error.text = lines[error.lineno - 1]
        error.msg = f"{error.msg}{_advice(source, error)}"
        raise
    except (MemoryError, RecursionError):
        raise SyntaxError("the cell is nested too deeply for Python's compiler") from None
    except ValueError as error:  # null bytes, halves of surrogate pairs
        raise SyntaxError(f"the cell is no Python source: {error}") from None


def _advice(source: str, error: SyntaxError) -> str:
    """What to do instead, for what a notebook knows and plain Python does not."""
    if _NOTEBOOK_ONLY.match(error.text or ""):
        return (
            ". Lines with %, ! or ? are the notebook's, and the ranks run plain Python: write "
            "them in a cell without %%ranks, or take a Python function (os.system for a command)"
        )
    try:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        compile(source, "<ranks cell>", "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return ""
    return (
        ". The ranks run plain Python, which awaits only inside an async function: "
        "asyncio.run(function()) runs one"
    )


def in_few_lines(error: SyntaxError) -> str:
    """A SyntaxError as Python shows it: file and line, the text, a mark, what is wrong."""
    return "".join(traceback.format_exception_only(error)).rstrip()
