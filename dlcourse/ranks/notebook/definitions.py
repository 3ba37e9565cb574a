"""Which cell of the notebook defined which name in the ranks, to say what to run again.

Ranks that were lost are started afresh without their variables, and lessons delete what takes much
memory. A learner then meets a NameError far below the cell that would help; the notebook's side has
seen all cells and can name it.
"""

from __future__ import annotations

import ast
import re
import symtable
from dataclasses import dataclass

from dlcourse.ranks.notebook.front_end import cell_id, notebook_cell
from dlcourse.words.strings import t
from dlcourse.words.units import rank_ranges

_SHOWN = 60  # characters of a cell's first line


def names_read(source: str) -> set[str]:
    """The names that a cell looks at outside its functions."""
    table = symtable.symtable(source, "<cell>", "exec")
    return {s.get_name() for s in table.get_symbols() if s.is_referenced()}


def names_bound(source: str) -> set[str]:
    """The names that running a cell's source binds: assigned, imported, defined, looped over."""
    try:
        table = symtable.symtable(source, "<cell>", "exec")
    except (SyntaxError, ValueError):
        return set()
    own = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    return (own | _global_names(table)) - names_deleted(source)  # `del` counts as an assignment


def names_deleted(source: str) -> set[str]:
    """The names that a cell deletes by `del`, as statements of its own."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        return set()
    targets = [target for s in statements if isinstance(s, ast.Delete) for target in s.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _global_names(table: symtable.SymbolTable) -> set[str]:
    """Names that functions of the cell assign after `global`."""
    found: set[str] = set()
    for inner in table.get_children():
        symbols = inner.get_symbols()
        found |= {s.get_name() for s in symbols if s.is_declared_global() and s.is_assigned()}
        found |= _global_names(inner)
    return found


def first_line(source: str) -> str:
    """The line by which a person finds a cell: its first that is no magic, comment or import."""
    lines = [line.strip() for line in source.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("%", "#", "@", "!"))]
    telling = [line for line in lines if not re.match(r"(from|import)\s", line)]
    line = (telling or lines or [""])[0]
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


@dataclass
class DefiningCell:
    """One cell that ran in ranks; `life` is the number of the pool's processes."""

    source: str
    number: int | None
    ranks: list[int]
    life: int
    bound: set[str]
    read: set[str]
    deleted: set[str]
    lost_ranks: bool = False  # it ended them

    def __str__(self) -> str:
        count = "" if self.number is None else f"[{self.number}] "
        return f"{count}{first_line(self.source)}"


class Definitions:
    """The cells that a pool has run, in the order of their last runs."""

    def __init__(self) -> None:
        self._cells: dict[str, DefiningCell] = {}  # by what stays when the learner edits the cell
        self._last = ""

    def note(self, source: str, ranks: list[int], life: int) -> None:
        """Keep a cell that has run; one that defines nothing needs no second run."""
        self._last = cell_id() or source
        self._cells.pop(self._last, None)
        bound, deleted = names_bound(source), names_deleted(source)
        if bound or deleted:
            number, read = notebook_cell(), names_read(source)
            cell = DefiningCell(source, number, ranks, life, bound, read, deleted)
            self._cells[self._last] = cell

    def last_lost_ranks(self) -> None:
        """The cell that ran last has ended the ranks."""
        if cell := self._cells.get(self._last):
            cell.lost_ranks = True

    def to_run_again(self, life: int | None) -> list[DefiningCell]:
        """Cells whose names ended with an earlier life of the ranks, in the order they ran.

        A cell is not needed if later ones have bound all its names without looking at them, and
        one that ended the ranks would do it again.
        """
        needed: list[DefiningCell] = []
        replaced: set[str] = set()
        for cell in reversed(self._cells.values()):
            if cell.life != life and cell.bound - replaced and not cell.lost_ranks:
                needed.append(cell)
            replaced |= cell.bound - cell.read
        return needed[::-1]

    def advice(self, name: str, rank: int, life: int, *, in_last: bool = False) -> str:
        """What to do about a name that a rank does not know; "" if nothing helps.

        in_last: whether the cell that ran last may be the one to run again.
        """
        keys = [key for key, cell in self._cells.items() if name in cell.bound]
        cells = [self._cells[key] for key in keys if in_last or key != self._last]
        if not cells:
            return ""
        cell = cells[-1]
        if cell.life != life:
            return t("ranks.defined_before", name=name, cell=cell)
        if rank not in cell.ranks:
            return t("ranks.defined_elsewhere", name=name, cell=cell, ranks=rank_ranges(cell.ranks))
        ran = [*self._cells.values()]
        deleting = [c for c in ran[ran.index(cell) + 1 :] if name in c.deleted]
        return t("ranks.deleted_since", name=name, cell=cell, by=deleting[0]) if deleting else ""
