"""What a learner has predicted in all lessons, beside what was measured, kept in a file of theirs.

The file is outside the course and the notebooks, so an update or a new copy leaves it alone. Each
line of it is one guess, or one measurement, as JSON: only ever appended, so two notebooks may write
at once, and a line that is broken costs that line. Nothing is sent anywhere, and nothing is written
where nobody is there to guess. A file that cannot be read or written never stops a lesson.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dlcourse.course import catalog
from dlcourse.course.claims import quantity
from dlcourse.words.strings import language, t
from dlcourse.words.units import digits

FOLDER = "DLCOURSE_LEARNER"  # names another folder for the learner's own files
FILE = "guesses.jsonl"
Number = int | float


@dataclass(frozen=True)
class Guess:
    """A guess that was typed, with the formula's answer, and what was measured afterwards.

    The first guess counts that met its measurement: whoever has seen the answer does not guess.

    Attributes:
        guess, formula, measured: in ``unit``, as `Asked` has it; measured is None before it ran.
        when: seconds since 1970, of the guess.
    """

    id: str
    guess: Number | str
    formula: Number | str | None
    unit: str
    when: float
    measured: Number | str | None = None

    @property
    def ratio(self) -> float | None:
        """guess / measured; None for words, zero, and two of different sign."""
        return _ratio(self.guess, self.measured)

    @property
    def formula_ratio(self) -> float | None:
        """formula / measured, likewise."""
        return _ratio(self.formula, self.measured)


def path_of(file: str = FILE) -> Path:
    """A file of the learner's; it need not exist.

    In the folder of ``DLCOURSE_LEARNER``, else where the system keeps a person's data.
    """
    if chosen := os.environ.get(FOLDER):
        return Path(chosen) / file
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "dlcourse" / file
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "dlcourse" / file


def shown_path(file: str = FILE) -> str:
    """`path_of` for a sentence; the name alone where whoever runs this has no home folder."""
    try:
        return str(path_of(file))
    except RuntimeError:
        return file


def lines(file: str) -> list[str]:
    """A file's lines; none where there is no file yet, none that may be read, or no home folder."""
    try:
        return path_of(file).read_bytes().decode("utf-8", "replace").splitlines()
    except (OSError, RuntimeError):
        return []


def append(file: str, **entry: Any) -> bool:
    """Append a line to a file of the learner's; False where it cannot be written."""
    try:
        path = path_of(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as opened:  # one write at the end: nobody else's comes between
            cut_off = opened.tell() > 0 and path.read_bytes()[-1:] != b"\n"
            line = json.dumps(entry, ensure_ascii=False) + "\n"
            opened.write(("\n" if cut_off else "").encode() + line.encode("utf-8"))
    except (OSError, RuntimeError):
        return False
    return True


def keep_guess(id: str, guess: Number | str, formula: Number | str | None, unit: str) -> bool:
    """Write a guess down; False where the file cannot be written."""
    return append(FILE, id=id, guess=guess, formula=formula, unit=unit, when=round(time.time()))


def keep_measured(id: str, measured: Number | str) -> bool:
    """Write down what was measured for a guess; False where the file cannot be written."""
    if any(kept.id == id and kept.measured is None for kept in read_guesses()):
        return append(FILE, id=id, measured=measured)
    return True


def read_guesses() -> list[Guess]:
    """All guesses that can be read, one for each prediction, in the lessons' order."""
    kept: dict[str, Guess] = {}
    for line in lines(FILE):
        entry = _entry(line)
        if entry is None:
            continue
        before = kept.get(entry["id"])
        if before is not None and before.measured is not None:
            continue
        if "measured" not in entry:
            kept[entry["id"]] = Guess(**entry)
        elif before is not None:
            kept[entry["id"]] = Guess(**asdict(before) | entry)
    return [kept[id] for id in sorted(kept)]


def show_guesses() -> Any:
    """The learner's guesses beside what was measured: shows a figure of the ratios, gives a table.

    Before any guess, a sentence that says so.
    """
    from IPython.display import display

    from dlcourse.figures.guesses import guesses_figure
    from dlcourse.figures.held import Said
    from dlcourse.figures.tables import Table

    guesses = read_guesses()
    if not guesses:
        return Said(t("guesses.none"))
    head, rows = guesses_rows(guesses)
    table = Table(head, rows, caption="" if _ratios(guesses) else summary(guesses))
    if not _ratios(guesses):
        return table
    points = [(g.id, g.ratio, g.formula_ratio) for g in guesses if g.ratio is not None]
    display(guesses_figure(points, title=summary(guesses)))
    return table


def guesses_rows(guesses: Sequence[Guess]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = [t(f"guesses.{name}") for name in ("lesson", "guess", "measured", "ratio", "formula")]
    rows = []
    for kept in guesses:
        measured = t("guesses.not_measured")
        ratio = ""
        if kept.measured is not None:
            measured = quantity(kept.measured, kept.unit)
            same = "guesses.same" if kept.guess == kept.measured else "guesses.other"
            ratio = t(same) if kept.ratio is None else f"{digits(kept.ratio)}×"
        formula = "" if kept.formula is None else quantity(kept.formula, kept.unit)
        guess = quantity(kept.guess, kept.unit)
        rows.append([_name(kept.id), guess, measured, ratio, formula])
    return head, rows


def guesses_record(guesses: Sequence[Guess]) -> list[dict[str, Any]]:
    """The guesses as plain data, for a program that reads them."""
    return [asdict(g) | {"ratio": g.ratio, "formula_ratio": g.formula_ratio} for g in guesses]


def summary(guesses: Sequence[Guess]) -> str:
    """How far the guesses were off, in one sentence."""
    off = _ratios(guesses)
    if not off:
        return t("guesses.not_yet", n=len(guesses))
    count, factor = len(off), digits(median(off))
    formula = [_off(g.formula_ratio) for g in guesses if g.ratio and g.formula_ratio]
    if formula:
        return t("guesses.summary_both", n=count, off=factor, formula=digits(median(formula)))
    return t("guesses.summary", n=count, off=factor)


def _ratios(guesses: Sequence[Guess]) -> list[float]:
    """By what factor each guess was off, above or below."""
    return [_off(kept.ratio) for kept in guesses if kept.ratio is not None]


def _off(ratio: float) -> float:
    return max(ratio, 1 / ratio)


def _ratio(number: Number | str | None, measured: Number | str | None) -> float | None:
    if not isinstance(number, int | float) or not isinstance(measured, int | float):
        return None
    return number / measured if number * measured > 0 else None


def _name(id: str) -> str:
    """The id with the title of its lesson, where the course has it."""
    root = catalog.course_root()
    for name in catalog.all_lessons(root):
        if id.startswith(f"{name[:2]}."):
            return f"{id} ({catalog.title(root, name, language())})"
    return id


def _entry(line: str) -> dict[str, Any] | None:
    """A line of the file, if it is one of ours and whole."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    value = int | float | str
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        return None
    if isinstance(entry.get("measured"), value):
        return {"id": entry["id"], "measured": entry["measured"]}
    names = ("id", "guess", "formula", "unit", "when")
    whole = (
        isinstance(entry.get("guess"), value)
        and isinstance(entry.get("formula"), value | None)
        and isinstance(entry.get("unit"), str)
        and isinstance(entry.get("when"), int | float)
    )
    return {name: entry[name] for name in names} if whole else None
