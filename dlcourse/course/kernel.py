"""The IPython extension of kernels that the course starts: cells may be run out of order.

A learner who opens a lesson and runs a cell in the middle meets `%%ranks` and `check` all the
same, and where a name is missing, a sentence says which cell brings it. Nothing is imported until
it is asked for, so a kernel starts as quickly as without.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# What JupyterLab's server tells a kernel: the path of its notebook, below the folder it shows.
NOTEBOOK = "JPY_SESSION_NAME"
START_CELLS = 2  # of a lesson: its parameters; its imports and its ranks
INSTALL_ID = "install"  # colab.py's, before them; no cell of the lesson needs a name of it
_SETS_UP = ("check", "hint", "solution")


class _Cell(NamedTuple):
    """A code cell of the notebook."""

    code: str  # without its magics
    magic: str  # its first line, if that is a magic
    for_ranks: bool
    folded: bool

    @property
    def run_name(self) -> str:
        """What `--as` calls its run in the notebook; "" without one."""
        words = [*self.magic.split(), "", ""]
        return words[words.index("--as") + 1] if self.for_ranks and "--as" in words else ""


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython when the kernel starts."""
    notebook = _notebook(os.environ.get(NOTEBOOK, ""))
    if notebook is not None and notebook.parent.name in ("ko", "en"):
        os.environ.setdefault("DLCOURSE_LANG", notebook.parent.name)
    register_magic()
    shell.push({name: _late(name) for name in _SETS_UP}, interactive=False)
    shell.events.register("post_run_cell", lambda result: _explain(result, shell, notebook))


def register_magic() -> None:
    """Make `%%ranks` known to the notebook, if this runs in one; what it needs is imported late."""
    shell = sys.modules["IPython"].get_ipython()
    if shell is not None and "ranks" not in shell.magics_manager.magics["cell"]:
        shell.register_magic_function(_ranks, "cell", "ranks")


def _notebook(path: str) -> Path | None:
    """The notebook's file: a kernel starts in the folder of its notebook."""
    file = Path.cwd() / Path(path).name
    # The folders above tell the language also where the server shows only a part of the course.
    return file if file.suffix == ".ipynb" and file.exists() else None


def _ranks(line: str, source: str) -> Any:
    """Run a cell in every rank: %%ranks [0,2] [--fast] [--as NAME] [--fails TEXT]"""
    from dlcourse import _load

    magic = _load("dlcourse.ranks.notebook.magic")
    magic.register()  # from the next cell on, IPython calls it itself
    return magic.ranks_magic(line, source)


def _late(name: str) -> Callable[..., Any]:
    """A function of the course that is imported when it is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        import dlcourse

        return getattr(dlcourse, name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    return call


def _explain(result: Any, shell: Any, notebook: Path | None) -> None:
    """After a cell that failed for want of a name: say which cell of the notebook brings it."""
    error = result.error_in_exec
    if error is None or result.info is None or result.info.silent:
        return
    missing = _missing(error)
    if missing is None:
        return
    if advice := _advice(*missing, shell.user_ns, _code_cells(notebook)):
        print(advice, file=sys.stderr)


def _missing(error: BaseException) -> tuple[str, bool] | None:
    """The name that a cell lacked ("" for the ranks themselves), and whether ranks lacked it."""
    if type(error) is NameError:
        return (error.name, False) if error.name else None
    errors = sys.modules.get("dlcourse.ranks.errors")
    if errors is None:
        return None
    if isinstance(error, errors.NoRanks):
        return "", True
    if isinstance(error, errors.NotInRanks):
        return (error.name, True) if error.name else None
    if isinstance(error, errors.RankError) and not getattr(error, "__notes__", None):
        names = map(errors.undefined_name, error.failures.values())
        return next(((name, True) for name in names if name), None)
    return None


def _code_cells(notebook: Path | None) -> list[_Cell]:
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"] if notebook else []
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        return [_read_cell(cell) for cell in code if cell.get("id") != INSTALL_ID]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _read_cell(cell: dict[str, Any]) -> _Cell:
    source = "".join(cell["source"])
    first = source.partition("\n")[0]
    folded = bool(cell["metadata"].get("jupyter", {}).get("source_hidden"))
    magic = first if first.startswith("%") else ""
    return _Cell(_without_magics(source), magic, first.startswith("%%ranks"), folded)


def _without_magics(source: str) -> str:
    lines = source.splitlines()
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)


def _advice(name: str, in_ranks: bool, known: dict[str, Any], cells: list[_Cell]) -> str:
    from dlcourse.ranks.notebook.definitions import first_line, names_bound
    from dlcourse.words.strings import t

    start = {bound for cell in cells[:START_CELLS] for bound in names_bound(cell.code)}
    lesson = {"lang", "ranks"} <= start
    if lesson and (not name or (name in start and not in_ranks)):
        return t("kernel.first_cells")
    if not name:
        return ""  # the error itself says how to make ranks
    binding = [cell for cell in cells if name in names_bound(cell.code)]
    homes = [(cell, first_line(cell.code)) for cell in binding if cell.for_ranks == in_ranks]
    if not in_ranks:
        homes += [(cell, cell.magic) for cell in cells if cell.run_name == name]
    if homes:
        home, line = homes[0]
        advice = [t("kernel.defined_in", name=name, cell=line)]
        if home.folded:
            advice.append(t("kernel.folded"))
        if lesson and "ranks" not in known:
            advice.append(t("kernel.first_cells"))
        return "\n".join(advice)
    if in_ranks:
        there = name in known
        return t("kernel.only_notebook", name=name) if there else ""
    return t("kernel.only_ranks", name=name) if binding else ""
