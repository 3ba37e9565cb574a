"""Real source for a lesson's cells, found with ``ast``: no module is imported.

A cell marked ``source="dlcourse.parallel.data:NaiveDataParallel"`` is filled with what the module
says today, so that a lesson and its module cannot drift apart.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import textwrap
from dataclasses import dataclass
from pathlib import Path

# What every rank's namespace offers already; a filled cell need not import it again.
READY = {
    "torch": "import torch",
    "dist": "import torch.distributed as dist",
    "nn": "from torch import nn",
    "F": "import torch.nn.functional as F",
}

WIDTH = 100  # characters of a line, as in the modules


@dataclass(frozen=True)
class Source:
    """A name's source in its module: ``code`` starts at ``line`` of ``path``."""

    module: str
    name: str
    path: Path
    line: int
    code: str


def module_path(module: str) -> Path:
    """File of a module, without importing it or its parents.

    Raises:
        ValueError: there is no such module.
    """
    top, *rest = module.split(".")
    importlib.invalidate_caches()  # a file that a learner has written a moment ago
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # __main__, or a module that was made by hand
        spec = None
    if spec is not None and not rest and spec.origin:
        return Path(spec.origin)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        base = Path(folder, *rest)
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    raise ValueError(f"no module {module!r}: give it as package.module:Name")


def split_reference(reference: str) -> tuple[str, list[str]]:
    """``"module:Name,Other"`` → ``("module", ["Name", "Other"])``."""
    module, colon, names = str(reference).partition(":")
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not colon or not wanted:
        raise ValueError(f"source {reference!r}: give it as package.module:Name[,Name2]")
    return module.strip(), wanted


def find_source(module: str, name: str) -> Source:
    """Source of a top-level class, function or constant, decorators included.

    Raises:
        ValueError: no such module, or no such name in it; lists the names there are.
    """
    path = module_path(module)
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    nodes = _definitions(tree)
    if name not in nodes:
        raise ValueError(f"{module} has no {name!r}; it has: {', '.join(sorted(nodes))}")
    node = nodes[name]
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(d.lineno for d in decorators)])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    return Source(module, name, path, first, "\n".join(lines))


def filled_cell(reference: str, *, kernel: bool = False) -> str:
    """The cell for a reference: ``%%ranks``, imports of the names used, then the real source.

    ``kernel=True`` leaves ``%%ranks`` out: for code that runs in the notebook's own process.
    """
    module, names = split_reference(reference)
    code = "\n\n\n".join(find_source(module, name).code for name in names)
    imports = _imports_for(module, code, set(names))
    magic = "" if kernel else "%%ranks\n"
    return magic + "".join(f"{line}\n" for line in imports) + ("\n" if imports else "") + code


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found.update({t.id: node for t in node.targets if isinstance(t, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def _imports_for(module: str, code: str, own: set[str]) -> list[str]:
    """Import lines that make ``code`` run outside its module, in a rank's namespace."""
    tree = ast.parse(module_path(module).read_text(encoding="utf-8"))
    used = {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name)}
    used |= _annotation_names(code)
    lines: dict[str, list[str]] = {}  # "from module import" → names; "import module" → none
    for node in _module_imports(tree):
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            start, what = _import_parts(module, node, alias)
            if start == "from __future__ import":
                # Without it, annotations are evaluated when the cell runs; that fails only for
                # a class that mentions itself, or one that stands further down.
                wanted = bool(own & _annotation_names(code))
            else:
                wanted = bound in used and READY.get(bound) != f"{start} {what}".strip()
            if wanted:
                lines.setdefault(start, []).extend([what] if what else [])
    local = sorted((used & set(_definitions(tree))) - own)
    if local:
        lines.setdefault(f"from {module} import", []).extend(local)
    return [_import_line(start, list(dict.fromkeys(what))) for start, what in lines.items()]


def _import_line(start: str, names: list[str]) -> str:
    """``from module import a, b``; in parentheses where a cell in Lab would cut it off."""
    line = f"{start} {', '.join(names)}".strip()
    if len(line) <= WIDTH:
        return line
    indent = " " * 4
    wrapped = textwrap.wrap(
        ", ".join(names) + ",",
        width=WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
    )
    return "\n".join([f"{start} (", *wrapped, ")"])


def _module_imports(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    """Imports at the top of a module, those under ``if TYPE_CHECKING:`` and ``try:`` included."""
    found: list[ast.Import | ast.ImportFrom] = []
    for node in tree.body:
        nested = ast.walk(node) if isinstance(node, ast.If | ast.Try) else [node]
        found += [n for n in nested if isinstance(n, ast.Import | ast.ImportFrom)]
    return found


def _import_parts(
    module: str, node: ast.Import | ast.ImportFrom, alias: ast.alias
) -> tuple[str, str]:
    """An import as ``("from origin import", "name")`` or ``("import name", "")``, absolute."""
    renamed = f" as {alias.asname}" if alias.asname else ""
    if isinstance(node, ast.Import):
        return f"import {alias.name}{renamed}", ""
    origin = node.module or ""
    if node.level:
        base = module.split(".")[: -node.level]
        origin = ".".join([*base, origin] if origin else base)
    return f"from {origin} import", f"{alias.name}{renamed}"


def _annotation_names(code: str) -> set[str]:
    """Names in annotations, also in those that are written as strings."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        for note in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(note, ast.Constant) and isinstance(note.value, str):
                note = ast.parse(note.value)
            if isinstance(note, ast.AST):
                names |= {n.id for n in ast.walk(note) if isinstance(n, ast.Name)}
    return names
