"""The claims that the course tests, and their verdicts, read from ``claims.toml`` of the rooms.

A claim stands in the room of the first lesson that tests it. A verdict is one of `VERDICTS`. A
claim with a verdict names the test that recomputes it and the figures it rests on; one that is
"not_tested_yet" says which lesson will test it. What a file may hold: ``claims.schema.json``.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dlcourse.course import catalog
from dlcourse.words.strings import t

VERDICTS = ("holds", "holds_when", "does_not_hold", "not_tested_yet")


@dataclass(frozen=True)
class Figure:
    """A number that a verdict rests on: measured on a machine, derived, or documented."""

    name: str
    label: dict[str, str]
    value: float
    unit: str
    kind: str
    machine: str = ""
    date: str = ""
    source: str = ""


@dataclass(frozen=True)
class Claim:
    """One claim. ``statement``, ``how``, ``when`` and ``condition`` are texts by language."""

    id: str
    lessons: list[str]
    statement: dict[str, str]
    how: dict[str, str]
    verdict: str
    when: dict[str, str] | None
    condition: dict[str, str] | None
    figures: tuple[Figure, ...]
    test: str | None


def claims_files(root: Path | None = None) -> list[Path]:
    """The files of claims, one in a room, in the order of the lessons."""
    return sorted(((root or catalog.course_root()) / "notebooks/source").glob("*/claims.toml"))


def load_claims(root: Path | None = None) -> dict[str, Claim]:
    """All claims by id, in the order of their ids.

    Raises:
        ValueError: there is no file, or one that is not TOML or breaks the schema; says in which
            claim and field.
    """
    found: dict[str, Claim] = {}
    problems = []
    files = claims_files(root)
    for path in files:
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # of tomllib, or not UTF-8
            problems.append(f"{path} is not TOML: {error}")
            continue
        wrong = schema_problems(content, path.parent.name)
        wrong += [f"{name}: there are two of it" for name in content if name in found]
        problems += [f"{path}: {problem}" for problem in wrong]
        if not wrong:
            found |= {name: _claim(name, data) for name, data in content.items()}
    if not files:
        where = (root or catalog.course_root()) / "notebooks/source"
        problems.append(f"{where} has no claims.toml: run from the course's own folder")
    if problems:
        raise ValueError("; ".join(problems))
    return dict(sorted(found.items()))


def find_claim(claim_id: str, root: Path | None = None) -> Claim:
    """The claim with this id, or ``ValueError`` with the ids there are."""
    claims = load_claims(root)
    if not isinstance(claim_id, str) or claim_id not in claims:
        raise ValueError(f"claim {claim_id!r} is unknown; choose one of: {', '.join(claims)}")
    return claims[claim_id]


def schema_problems(content: dict[str, Any], room: str) -> list[str]:
    """What is wrong with a file of claims: one line for a claim or figure that is, with the field.

    room: the folder of the file, which is the first lesson of its claims.
    """
    problems = []
    for name, claim in content.items():
        if not re.fullmatch(r"[A-E]\d", name):
            problems.append(f"{name}: an id must be a letter A-E and a digit")
        elif said := _breach("claim", claim):
            problems.append(f"{name}: {said}")
        else:
            lessons = claim["lessons"]
            unknown = [lesson for lesson in lessons if lesson not in catalog.LESSONS]
            problems += [f"{name}: lessons: {lesson!r} is unknown" for lesson in unknown]
            if lessons[0] != room:
                problems.append(f"{name}: lessons: the first is not {room}, where the claim stands")
            for position, figure in enumerate(claim.get("figures", [])):
                if said := _breach("figure", figure):
                    which = figure.get("name", position + 1)
                    problems.append(f"{name}: figure {which}: {said}")
    return problems


def verdict_problems(claim: Claim, root: Path) -> list[str]:
    """What a verdict lacks: its lesson, its figures, the test that recomputes it."""
    if claim.verdict == "not_tested_yet":
        return []
    problems = []
    if not set(claim.lessons) & set(catalog.written_lessons(root)):
        problems.append(f"{claim.id} has a verdict, but none of its lessons is written")
    if not claim.figures:
        problems.append(f"{claim.id} has a verdict without a figure")
    if claim.test is None or not has_test(claim.test, root):
        problems.append(f"{claim.id}: there is no test {claim.test}")
    return problems


def has_test(node: str, root: Path) -> bool:
    """Is there a test function ``tests/file.py::test_name``?"""
    file, _, name = node.partition("::")
    path = root / file
    if not path.is_file():
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(n, ast.FunctionDef) and n.name == name for n in ast.walk(tree))


def verdict_text(claim: Claim, lang: str) -> str:
    """The verdict, and of one that holds under a condition its few words."""
    if claim.when:
        return t("claim.when", lang, when=claim.when[lang])
    return t(f"claim.verdict.{claim.verdict}", lang)


def claims_table(root: Path, lang: str) -> str:
    """All claims as text: id, verdict, statement, and what is true instead."""
    lines = []
    for claim in load_claims(root).values():
        verdict = verdict_text(claim, lang)
        if claim.verdict == "not_tested_yet":
            verdict += f" ({t('claim.tested_in', lang, lesson=next_lesson(claim, root))})"
        lines.append(f"{claim.id}  {verdict}")
        lines.append(f"    {claim.statement[lang]}")
        if claim.condition:
            lines.append(f"    → {claim.condition[lang]}")
        lines += [f"      {figure_text(figure, lang)}" for figure in claim.figures]
    return "\n".join(lines)


def next_lesson(claim: Claim, root: Path) -> str:
    """The lesson to look to for a verdict: the first that is still to be written, else the last."""
    written = catalog.written_lessons(root)
    return next((name for name in claim.lessons if name not in written), claim.lessons[-1])


def figure_text(figure: Figure, lang: str) -> str:
    """``label: 1.5 S (2 cores, 2025-11-20)``."""
    return f"{figure.label[lang]}: {quantity(figure.value, figure.unit)} ({origin(figure, lang)})"


def origin(figure: Figure, lang: str) -> str:
    """Where a figure comes from: machine and date, derivation, or source."""
    fields = {"machine": figure.machine, "date": figure.date, "source": figure.source}
    return t(f"claim.kind.{figure.kind}", lang, **fields)


def quantity(value: float | str, unit: str = "") -> str:
    """A value as people read it: bytes and seconds scaled, other units behind the number."""
    from dlcourse.words.units import digits, human_bytes, human_seconds

    if isinstance(value, str):
        return value
    if unit == "bytes":
        exact = f" ({value:,.0f} B)" if abs(value) >= 1000 else ""
        return human_bytes(value) + exact
    if unit == "s":
        return human_seconds(value)
    return f"{digits(value)}{'' if unit in ('', '%') else ' '}{unit}"


def _claim(name: str, data: dict[str, Any]) -> Claim:
    figures = tuple(Figure(**figure) for figure in data.get("figures", ()))
    optional = {"when": None, "condition": None, "test": None}
    return Claim(**optional | data | {"id": name, "figures": figures})


def _breach(what: str, data: Any) -> str:
    """The first thing in which a "claim" or "figure" breaks the schema; "" if there is none.

    By fastjsonschema, because a lesson loads the claims: jsonschema would take it a second.
    """
    from fastjsonschema import JsonSchemaValueException

    try:
        _validator(what)(data)
    except JsonSchemaValueException as error:
        field = ".".join(map(str, error.path[1:]))
        said = error.message.removeprefix(error.name or "").strip()
        if error.rule in ("pattern", "not"):
            said = error.definition["description"]
        return f"{field}: {said}" if field else said
    return ""


@cache
def _validator(what: str) -> Callable[[Any], Any]:
    import fastjsonschema

    schema = json.loads(Path(__file__).with_name("claims.schema.json").read_text("utf-8"))
    return fastjsonschema.compile(schema | {"$ref": f"#/definitions/{what}"})
