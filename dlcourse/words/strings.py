"""Every word that a learner sees outside the lessons' own text, looked up by key and language.

The words themselves are in TOML files, both languages side by side. A key begins with its area:
"panel.bytes" is [bytes] in ``panel.toml`` of this folder. What only one lesson uses is in
``words.toml`` of the lesson's room, whose area is the lesson's name without its number:
"accumulation.same" is [same] in ``09_accumulation/words.toml``. A file is read when the first key
of its area is asked for. The lesson itself leaves the area out: t(".same").
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = ("ko", "en")
_FOLDER = Path(__file__).parent
_LESSON = "DLCOURSE_WORDS"  # the file of the lesson's own words; the ranks inherit it
_chosen: str | None = None
_speaking: ContextVar[str | None] = ContextVar("speaking", default=None)  # inside `both`


def set_language(lang: str) -> None:
    """Make `lang` ("ko" or "en") the language of this process. ValueError for another one."""
    global _chosen
    _chosen = _checked(lang, "lang")


class Both(str):
    """A text in the language in use, and in English for what looks for words in it."""

    english: str


def both(make: Callable[[], str]) -> Both:
    """What ``make`` says in the language in use, and in English; it is called twice."""
    text = Both(make())
    token = _speaking.set("en")
    try:
        text.english = make()
    finally:
        _speaking.reset(token)
    return text


def language() -> str:
    """The language in use: the one that was set, else DLCOURSE_LANG, else the system's, else "ko".

    The system's is in LC_ALL, LC_MESSAGES or LANG: the first of them that is not empty counts.
    ValueError for another DLCOURSE_LANG; a system in another language has Korean.
    """
    if (now := _speaking.get()) is not None:
        return now
    if _chosen:
        return _chosen
    if own := os.environ.get("DLCOURSE_LANG"):
        return _checked(own, "DLCOURSE_LANG")
    said = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    code = re.split(r"[^a-z]", next(filter(None, said), "").lower())[0]  # en_US.UTF-8: "en"
    return code if code in LANGUAGES else "ko"


def set_lesson_words(path: Path) -> None:
    """Look for words in this file too, here and in processes started later.

    path: ``NN_name/words.toml``, which has the words of area "name"; it need not exist.
    """
    os.environ[_LESSON] = str(path)


def lesson_words() -> Path | None:
    """The file of the words of the lesson that runs; its folder is the lesson's room."""
    own = os.environ.get(_LESSON)
    return Path(own) if own else None


def t(key: str, lang: str | None = None, **fmt: object) -> str:
    """The words of `key`, such as "panel.state.idle", with the fields in braces filled in.

    key:  area and name; ".name" is one of the words of the lesson that has been started.
    lang: "ko" or "en"; None is the language in use.
    fmt:  a value for each field of the words; a field may carry a format, as in "{count:,}".
    ValueError: an unknown key or language, a field without a value, or a file that is not right.
    """
    lang = _checked(lang, "lang") if lang is not None else language()
    own = os.environ.get(_LESSON)
    if key.startswith("."):
        if not own:
            raise ValueError(f"key={key!r} is one of a lesson's own: call lesson(name=...) first")
        key = area_of(Path(own)) + key
    area, _, name = key.partition(".")
    files = [_FOLDER / f"{area}.toml"]
    if own and area_of(Path(own)) == area:
        files.append(Path(own))
    for path in files:
        if name in (table := read_words(path)):
            words = table[name][lang]
            break
    else:
        raise ValueError(_unknown(key, files))
    try:
        return words.format(**fmt)
    except KeyError as missing:
        raise ValueError(
            f"t({key!r}) needs a value for the field {missing}: "
            f"pass {missing.args[0]}=... (the words in {path} are {words!r})."
        ) from None


def has_words(key: str) -> bool:
    """Whether there are words for a key of the course's areas, not of a lesson's own."""
    area, _, name = key.partition(".")
    return name in read_words(_FOLDER / f"{area}.toml")


def area_of(path: Path) -> str:
    """What the keys of this file begin with."""
    return path.parent.name.partition("_")[2] if path.stem == "words" else path.stem


@cache
def read_words(path: Path) -> dict[str, dict[str, str]]:
    """The words in a file: name of the table -> language -> text; none where there is no file.

    ValueError: not TOML, or a table without both languages; the message names file and table.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:  # of tomllib, or not UTF-8
        raise ValueError(f"{path} is not TOML: {error}") from None
    found = dict(_tables(content))
    for name, words in found.items():
        if sorted(words) != sorted(LANGUAGES) or not all(type(w) is str for w in words.values()):
            raise ValueError(f'{path}: [{name}] needs two texts, ko = "…" and en = "…"')
    return found


def _tables(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """[a] and [a.b] are both tables of words, although TOML has one inside the other."""
    inner = {key: value for key, value in content.items() if isinstance(value, dict)}
    if words := {key: value for key, value in content.items() if key not in inner}:
        yield prefix.removesuffix("."), words
    for key, value in inner.items():
        yield from _tables(value, f"{prefix}{key}.")


def _unknown(key: str, files: list[Path]) -> str:
    searched = {*files, *_FOLDER.glob("*.toml")}
    known = [f"{area_of(path)}.{name}" for path in searched for name in read_words(path)]
    near = difflib.get_close_matches(key, known, n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return f"key={key!r} is not in {' or '.join(map(str, files))}{hint}"


def _checked(lang: str, name: str) -> str:
    if lang not in LANGUAGES:
        raise ValueError(
            f"{name}={lang!r} is not a language of this course; "
            f'use "ko" (Korean) or "en" (English).'
        )
    return lang
