"""The claims that the course tests, read from ``data/claims.json``, and their verdicts.

A verdict is one of `VERDICTS`. A claim with a verdict names the test that recomputes it and the
figures it rests on; one that is "not_tested_yet" says which lesson will test it.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcourse.course import catalog
from dlcourse.words.strings import t

VERDICTS = ("holds", "holds_when", "does_not_hold", "not_tested_yet")
KINDS = {"measured": ("machine", "date"), "derived": (), "documented": ("source", "date")}


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
    """One claim. ``statement``, ``how`` and ``condition`` are texts by language."""

    id: str
    lessons: list[str]
    statement: dict[str, str]
    how: dict[str, str]
    verdict: str
    condition: dict[str, str] | None
    figures: tuple[Figure, ...]
    test: str | None


def claims_path(root: Path | None = None) -> Path:
    return (root or catalog.course_root()) / "data" / "claims.json"


def load_claims(root: Path | None = None) -> dict[str, Claim]:
    """All claims by id, in the order of the file.

    Raises:
        ValueError: the file is missing, not JSON, or breaks the schema; says every way in which.
    """
    path = claims_path(root)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: run from the course's own folder") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    problems = schema_problems(data)
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return {c["id"]: _claim(c) for c in data["claims"]}


def find_claim(claim_id: str, root: Path | None = None) -> Claim:
    """The claim with this id, or ``ValueError`` with the ids there are."""
    claims = load_claims(root)
    if claim_id not in claims:
        raise ValueError(f"claim {claim_id!r} is unknown; choose one of: {', '.join(claims)}")
    return claims[claim_id]


def schema_problems(data: Any) -> list[str]:
    """What is wrong with the content of a claims file, one line each."""
    if not isinstance(data, dict) or not isinstance(data.get("claims"), list):
        return ['the file must be an object with a list "claims"']
    problems = []
    seen: set[str] = set()
    for position, claim in enumerate(data["claims"]):
        name = claim.get("id", f"claim {position + 1}")
        problems += [f"{name}: {problem}" for problem in _claim_problems(claim)]
        if name in seen:
            problems.append(f"{name}: there are two of it")
        seen.add(name)
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


def claims_table(root: Path, lang: str) -> str:
    """All claims as text: id, verdict, statement, and what is true instead."""
    lines = []
    for claim in load_claims(root).values():
        verdict = t(f"claim.verdict.{claim.verdict}", lang)
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


def _claim(data: dict[str, Any]) -> Claim:
    figures = tuple(Figure(**figure) for figure in data["figures"])
    return Claim(**{**data, "figures": figures})


def _claim_problems(claim: dict[str, Any]) -> list[str]:
    fields = {"id", "lessons", "statement", "how", "verdict", "condition", "figures", "test"}
    if set(claim) != fields:
        return [f"fields must be {', '.join(sorted(fields))}"]
    problems = []
    if not re.fullmatch(r"[A-E]\d", claim["id"]):
        problems.append("id must be a letter A-E and a digit")
    if not claim["lessons"]:
        problems.append("lessons is empty")
    problems += [f"lesson {n!r} is unknown" for n in claim["lessons"] if n not in catalog.LESSONS]
    if claim["verdict"] not in VERDICTS:
        problems.append(f"verdict must be one of {', '.join(VERDICTS)}")
    for field in ("statement", "how"):
        problems += _text_problems(field, claim[field])
    if claim["condition"] is not None:
        problems += _text_problems("condition", claim["condition"])
    if claim["verdict"] in ("holds_when", "does_not_hold") and claim["condition"] is None:
        problems.append(f'"{claim["verdict"]}" needs a condition: what is true instead')
    if claim["verdict"] == "not_tested_yet" and (claim["condition"] or claim["figures"]):
        problems.append('"not_tested_yet" cannot have a condition or figures')
    for figure in claim["figures"]:
        problems += _figure_problems(figure)
    return problems


def _figure_problems(figure: dict[str, Any]) -> list[str]:
    name = figure.get("name", "a figure")
    allowed = set(Figure.__dataclass_fields__)
    needed = {"name", "label", "value", "unit", "kind"}
    if not needed <= set(figure) <= allowed:
        return [f"{name}: fields must be {', '.join(sorted(needed))} and where it comes from"]
    problems = []
    if not str(name).isidentifier():
        problems.append(f"{name}: name must be an identifier")
    if not isinstance(figure["value"], int | float):
        problems.append(f"{name}: value must be a number")
    if figure["kind"] not in KINDS:
        problems.append(f"{name}: kind must be one of {', '.join(KINDS)}")
    else:
        missing = [field for field in KINDS[figure["kind"]] if not figure.get(field)]
        problems += [f"{name}: a {figure['kind']} figure needs {field}" for field in missing]
    if figure.get("date") and not re.fullmatch(r"\d{4}(-\d\d){0,2}", figure["date"]):
        problems.append(f"{name}: date must be YYYY-MM-DD, YYYY-MM or YYYY")
    return problems + _text_problems(f"{name}: label", figure["label"])


def _text_problems(field: str, text: Any) -> list[str]:
    if not isinstance(text, dict) or set(text) != set(catalog.LANGUAGES):
        return [f"{field} must have both languages, ko and en"]
    problems = [f"{field} is empty in {lang}" for lang, words in text.items() if not words.strip()]
    if not re.search(r"[\uac00-\ud7a3]", text["ko"]):
        problems.append(f"{field} has no Hangul in ko")
    if re.search(r"[\uac00-\ud7a3]", text["en"]):
        problems.append(f"{field} has Hangul in en")
    return problems
