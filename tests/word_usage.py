"""Which keys of words the course's Python asks for: ``t("panel.bytes")``, ``t(f"panel.{name}")``.

A name in an f-string is followed to the literals it was bound to before, as in
``for name in ("sent", "peak")``. Where that fails, the f-string is a pattern, and what may stand in
its gap is any text that the file or (for a lesson) a module it imports holds.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

ASK = ("t", "strings.t", "Refusal", "DoesNotFit")  # what looks its first argument up
Names = dict[str, set[str] | None]  # the texts a name may be; None where they are not known


@dataclass
class Usage:
    """What one file asks for, and the texts it holds."""

    path: Path
    literals: set[str] = field(default_factory=set)
    patterns: set[str] = field(default_factory=set)  # with a group for each gap
    by_name: bool = False  # some t(name) whose texts are not known: any key that the file holds
    texts: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)  # of sliders, which may have words
    imports: set[str] = field(default_factory=set)

    def complete(self, area: str) -> None:
        """In a lesson, ".name" is one of its own words."""
        self.literals = {area + key if key.startswith(".") else key for key in self.literals}
        self.patterns = {area + p if p.startswith("\\.") else p for p in self.patterns}

    def keys(self, known: set[str], fill: set[str]) -> set[str]:
        """The keys among ``known`` that this file asks for; ``fill`` may stand in gaps."""
        return (
            (self.literals | self.values) & known
            | {key for p in self.patterns for key in matches(p, known, fill)}
            | (self.texts & known if self.by_name else set())
        )


def matches(pattern: str, known: set[str], fill: set[str]) -> set[str]:
    """Keys that a pattern may be, with texts of ``fill``, ".text" or nothing in its gaps."""
    hits = ((key, re.fullmatch(pattern, key)) for key in known)
    return {
        key
        for key, hit in hits
        if hit
        and all(not gap or gap in fill or gap.removeprefix(".") in fill for gap in hit.groups())
    }


def usage(path: Path) -> Usage:
    """What the file asks for.

    Raises:
        SyntaxError: it is not Python.
    """
    return usage_of(path.read_text(encoding="utf-8"), path)


def usage_of(code: str, path: Path = Path("-")) -> Usage:
    reader = _Reader(Usage(path))
    reader.visit(ast.parse(code, str(path)))
    return reader.found


class _Reader(ast.NodeVisitor):
    """Goes through a file from top to bottom, with the literals that names are bound to."""

    def __init__(self, found: Usage) -> None:
        self.found, self.names = found, Names()
        self.sequences: Names = {}

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.found.texts |= {node.value, *node.value.split()}

    def visit_keyword(self, node: ast.keyword) -> None:
        self.found.texts.add(node.arg or "")
        if node.arg == "reason" and self.found.path.name == "predictions.py":  # of Asked: a key
            self.found.literals |= {f".{key}" for key in self._texts(node.value) or ()}
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found.imports |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        self.found.imports |= {module, *(f"{module}.{alias.name}" for alias in node.names)}

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)
            self._bind(target, self._texts(node.value), self._items(node.value))

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self._bind(node.target, self._items(node.iter), None)
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    def _comprehension(self, node: ast.AST) -> None:
        before = self.names.copy(), self.sequences.copy()
        for part in node.generators:
            self.visit(part.iter)
            self._bind(part.target, self._items(part.iter), None)
            for condition in part.ifs:
                self.visit(condition)
        for name in ("key", "value", "elt"):
            if hasattr(node, name):
                self.visit(getattr(node, name))
        self.names, self.sequences = before

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before = self.names.copy(), self.sequences.copy()
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                self.names[argument.arg] = self.sequences[argument.arg] = None
        self.generic_visit(node)
        self.names, self.sequences = before

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if ast.unparse(node.func) in ASK and node.args:
            self._ask(node.args[0])
        if ast.unparse(node.func) == "explore":  # each slider has its name's words
            sliders = [each for each in node.keywords if each.arg not in (None, "start")]
            self.found.literals |= {f"explore.{each.arg}" for each in sliders}
            self.found.values |= {
                f"explore.{each.arg}.{value.value}"
                for each in sliders
                for value in getattr(each.value, "elts", ())
                if isinstance(value, ast.Constant)
            }

    def _ask(self, key: ast.expr) -> None:
        texts = self._texts(key)
        if texts is not None:
            self.found.literals |= texts
        elif isinstance(key, ast.IfExp):
            self._ask(key.body)
            self._ask(key.orelse)
        elif isinstance(key, ast.JoinedStr):
            parts = [self._texts(_inner(part)) for part in key.values]
            made = {""}
            for part in parts:
                made = {a + b for a in made for b in (map(re.escape, part) if part else ("(.*)",))}
            self.found.patterns |= made
        else:
            self.found.by_name = True

    def _bind(self, target: ast.expr, texts: set[str] | None, items: set[str] | None) -> None:
        for name in ast.walk(target):
            if isinstance(name, ast.Name):
                whole = name is target
                self.names[name.id] = texts if whole else None
                self.sequences[name.id] = items if whole else None

    def _texts(self, node: ast.expr) -> set[str] | None:
        """The texts that an expression may be; None if not known."""
        match node:
            case ast.Constant(value=str(text)):
                return {text}
            case ast.Name(id=name):
                return self.names.get(name)
            case ast.IfExp(body=yes, orelse=no):
                found = self._texts(yes), self._texts(no)
                return None if None in found else found[0] | found[1]
            case ast.JoinedStr(values=parts):
                made = {""}
                for part in parts:
                    if (texts := self._texts(_inner(part))) is None:
                        return None
                    made = {a + b for a in made for b in texts}
                return made
        return None

    def _items(self, node: ast.expr) -> set[str] | None:
        """The texts in a sequence, or the keys of a dict; None if not known."""
        match node:
            case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
                found = [
                    self._items(i.value) if isinstance(i, ast.Starred) else self._texts(i)
                    for i in items
                ]
                return None if None in found else set().union(*found)
            case ast.Name(id=name):
                return self.sequences.get(name)
        return None


def _inner(part: ast.expr) -> ast.expr:
    return part.value if isinstance(part, ast.FormattedValue) else part
