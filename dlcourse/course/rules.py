"""What a lesson's cells must keep to: short texts, short code, and no prose inside code.

The limits are the course's own (see the contributor notes): a learner reads short texts between
short cells, and a word that a learner reads is never hidden in code, where nobody translates it.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

from dlcourse.course.source import Block, Lesson, Problem

MAX_WORDS = {"en": 120, "ko": 90}  # of one text cell: English words, Korean eojeol
MAX_WORDS_IN_ROW = {"en": 60, "ko": 45}  # the same proportion, for two text cells in a row
MAX_CODE_LINES = 15
MAX_NOTEBOOK_BYTES = 300_000
MAX_COMMENT_WORDS = 6
MAX_LITERAL_WORDS = 5  # from here on a string literal reads as a sentence

_HANGUL = re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*")
_NUMERALS = {"en": "words", "ko": "eojeol"}


def has_hangul(text: str) -> bool:
    return bool(_HANGUL.search(text))


def count_words(text: str) -> int:
    """Words (English) or eojeol (Korean) that a reader reads in a markdown cell.

    Diagrams, formulas, link targets and HTML tags are not read as words.
    """
    text = re.sub(r"^```.*?^```", " ", text, flags=re.M | re.S)
    text = re.sub(r"\$\$.*?\$\$", " x ", text, flags=re.S)
    text = re.sub(r"\$[^$\n]+\$", "x", text)
    text = re.sub(r"`[^`\n]+`", "x", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<[^>]+>", " ", text)
    return sum(any(ch.isalnum() for ch in token) for token in text.split())


def struck_out(text: str) -> bool:
    """Whether Lab strikes a part of a text out, as between the two ~ of "20~50% and 30~70%"."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    return any(paragraph.count("~") > 1 for paragraph in prose.split("\n\n"))


def check_texts(lesson: Lesson, shown: Path) -> list[Problem]:
    """Length of text cells, alone and two in a row; language of each."""
    problems = []
    before: Block | None = None
    for block in lesson.blocks:
        if block.kind != "text":
            before = None
            continue
        for lang, text in block.text.items():
            line, words, unit = block.lines[lang], count_words(text), _NUMERALS[lang]
            if words > MAX_WORDS[lang]:
                problems.append(
                    Problem(
                        shown,
                        line,
                        f"text cell of {words} {unit}, at most {MAX_WORDS[lang]}: cut it, or "
                        "split it with a code cell between",
                    )
                )
            limit = MAX_WORDS_IN_ROW[lang]
            if before is not None and words > limit < count_words(before.text.get(lang, "")):
                problems.append(
                    Problem(
                        shown,
                        line,
                        f"two text cells in a row over {limit} {unit} each: put a code cell "
                        "between, or shorten one",
                    )
                )
            if struck_out(text):
                told = "two ~ in a paragraph strike out what is between: write 20-50%"
                problems.append(Problem(shown, line, told))
            if lang == "en" and has_hangul(text) and lesson.name != "index":
                problems.append(Problem(shown, line, "Hangul in the English cell: move it"))
            if lang == "ko" and count_words(block.text["en"]) > 8 and not has_hangul(text):
                problems.append(Problem(shown, line, "no Hangul in the Korean cell: translate it"))
        before = block
    return problems


def check_code(block: Block, shown: Path) -> list[Problem]:
    """Length, Hangul, sentences and comments of one code cell of the lesson's own."""
    source = block.code
    own = [line for line in source.splitlines() if line.strip() and not line.startswith("%%")]
    problems = []
    if len(own) > MAX_CODE_LINES:
        problems.append(
            Problem(
                shown,
                block.line,
                f"code cell of {len(own)} lines, at most {MAX_CODE_LINES}: move code into the "
                "lesson's module, or split the cell",
            )
        )
    for offset, line in enumerate(source.splitlines(), 1):
        if has_hangul(line):
            problems.append(
                Problem(
                    shown,
                    block.line + offset,
                    "Hangul in code: words belong in text cells or in the lesson's words.toml",
                )
            )
    plain = without_magics(source)
    try:
        tree = ast.parse(plain)
    except SyntaxError as error:
        at = block.line + (error.lineno or 0)
        return [*problems, Problem(shown, at, f"code does not parse: {error.msg}")]
    problems += [
        Problem(shown, block.line + at, f"prose in code, the string {_short(text)}: {_MOVE}")
        for at, text in _sentences(tree)
    ]
    problems += [
        Problem(shown, block.line + at, f"prose in code, the comment {_short(text)}: {_MOVE}")
        for at, text in _comments(plain)
        if len(_WORD.findall(text)) > MAX_COMMENT_WORDS
    ]
    return problems


_MOVE = 'put it in a text cell, or into the lesson\'s words.toml and call t(".name")'


def without_magics(source: str) -> str:
    """The cell as plain Python of the same lines: magics and shell lines become empty."""
    return "\n".join("" if re.match(r"\s*[%!]", line) else line for line in source.splitlines())


def _sentences(tree: ast.AST) -> list[tuple[int, str]]:
    found = []
    for node, skip in _literals(tree, False):
        if isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else "{}" for v in node.values]
            text = "".join(str(part) for part in parts)
        else:
            text = str(node.value)
        words = len(_WORD.findall(re.sub(r"\S*[/_=\d]\S*|\S+\.\S+:\S+", " ", text)))
        ends = bool(re.search(r"[A-Za-z)}][.!?](\s|$)", text)) and words >= 3
        if not skip and (words >= MAX_LITERAL_WORDS or ends):
            found.append((node.lineno, text))
    return found


def _literals(node: ast.AST, skip: bool) -> list[tuple[ast.JoinedStr | ast.Constant, bool]]:
    """String literals below ``node``; ``skip`` marks those that quote an expected message."""
    if isinstance(node, ast.JoinedStr):
        return [(node, skip)]
    if isinstance(node, ast.Constant):
        return [(node, skip)] if isinstance(node.value, str) else []
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "expect_failure":
        skip = True
    return [pair for child in ast.iter_child_nodes(node) for pair in _literals(child, skip)]


def _comments(source: str) -> list[tuple[int, str]]:
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, IndentationError):
        return []
    return [(t.start[0], t.string) for t in tokens if t.type == tokenize.COMMENT]


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= 50 else flat[:47] + "…")
