"""Read a lesson's source: jupytext percent, code once, every text cell in English and Korean.

A source is turned into a list of `Block`s. A block is one place in the lesson: a pair of text
cells, or a code cell. Each knows its line, so that a problem can name it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jupytext

from dlcourse.course import catalog

_MARKER = re.compile(r"^# %%(\s|$)")
# Layout hints that jupytext keeps for its own round trip; they say nothing about the lesson.
_JUPYTEXT_KEYS = {"lines_to_next_cell", "lines_to_end_of_cell_marker"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where it is, and what to do."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else str(self.path)
        return f"{place}: {self.message}"


@dataclass
class Block:
    """One place in the lesson: ``kind`` is "text" (``text[lang]``) or "code" (``code``)."""

    kind: str
    line: int
    text: dict[str, str] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    code: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def tags(self) -> list[str]:
        return list(self.metadata.get("tags", []))


@dataclass
class Lesson:
    """A parsed source with the problems that were met while reading it."""

    path: Path
    blocks: list[Block]
    problems: list[Problem]

    @property
    def name(self) -> str:
        return catalog.name_of(self.path)


def text_hash(english: str) -> str:
    """The 8 hex digits that a Korean cell carries of the English cell it translates."""
    return hashlib.sha256(english.strip().encode()).hexdigest()[:8]


def read_lesson(path: Path, shown: Path | None = None) -> Lesson:
    """Parse a source file. ``shown`` is the path that problems print (default: ``path``)."""
    shown = shown or path
    content = path.read_text(encoding="utf-8")
    cells = jupytext.reads(content, fmt="py:percent").cells
    lines = [i for i, line in enumerate(content.splitlines(), 1) if _MARKER.match(line)]
    if len(lines) != len(cells):
        message = "text before the first cell marker: start the file with `# %% [markdown]`"
        return Lesson(path, [], [Problem(shown, 1, message)])
    blocks: list[Block] = []
    problems: list[Problem] = []
    waiting: Block | None = None  # an English cell whose Korean one must come next
    for cell, line in zip(cells, lines, strict=True):
        metadata = {k: v for k, v in cell.metadata.items() if k not in _JUPYTEXT_KEYS}
        lang = metadata.get("lang")
        if waiting is not None and not (cell.cell_type == "markdown" and lang == "ko"):
            problems.append(_no_translation(shown, waiting))
            waiting = None
        if cell.cell_type == "code":
            blocks.append(Block("code", line, code=cell.source, metadata=metadata))
        elif lang == "en":
            own = {k: v for k, v in metadata.items() if k != "lang"}
            waiting = Block("text", line, {"en": cell.source}, {"en": line}, metadata=own)
            blocks.append(waiting)
        elif lang == "ko" and waiting is not None:
            waiting.text["ko"], waiting.lines["ko"] = cell.source, line
            problems += _check_translation(shown, waiting, metadata.get("en"))
            waiting = None
        elif lang == "ko":
            problems.append(
                Problem(shown, line, "Korean text cell without an English one just before it")
            )
        else:
            problems.append(Problem(shown, line, 'text cell needs lang="en" or lang="ko"'))
    if waiting is not None:
        problems.append(_no_translation(shown, waiting))
    return Lesson(path, blocks, problems)


def accept_translations(path: Path) -> list[int]:
    """Write the current hash into every Korean cell; return the lines that changed.

    To be called after a person has looked at the Korean text beside the changed English.
    """
    lesson = read_lesson(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    changed = []
    for block in lesson.blocks:
        if set(block.text) != {"en", "ko"}:
            continue
        at = block.lines["ko"] - 1
        marker = re.sub(r'\s*\ben="[^"]*"', "", lines[at])
        marker = marker.replace('lang="ko"', f'lang="ko" en="{text_hash(block.text["en"])}"', 1)
        if marker != lines[at]:
            lines[at] = marker
            changed.append(at + 1)
    if changed:
        path.write_text("\n".join(lines), encoding="utf-8")
    return changed


def _no_translation(shown: Path, block: Block) -> Problem:
    marker = f'# %% [markdown] lang="ko" en="{text_hash(block.text["en"])}"'
    return Problem(
        shown, block.line, f"no Korean translation: add `{marker}` right after this English cell"
    )


def _check_translation(shown: Path, block: Block, given: Any) -> list[Problem]:
    line, english, korean = block.lines["ko"], block.text["en"], block.text["ko"]
    expected = text_hash(english)
    if not korean.strip():
        return [Problem(shown, line, "the Korean cell is empty: translate the English cell above")]
    if korean.strip() == english.strip() and re.search(
        r"[A-Za-z]{2,} +[A-Za-z]{2,}", _prose(english)
    ):
        return [Problem(shown, line, "the Korean cell repeats the English text: translate it")]
    if given != expected:
        return [
            Problem(
                shown,
                line,
                f'stale translation: the English at line {block.line} has changed (en="{given}",'
                f' now "{expected}"): revise the Korean, then `dlcourse build --accept '
                f"{catalog.name_of(shown)}`",
            )
        ]
    return []


def _prose(text: str) -> str:
    """The text without fenced blocks, which are the same in both languages at times."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
