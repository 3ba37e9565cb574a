"""Every word that a learner sees outside the lessons' own text, looked up by key and language.

The words themselves are in `words.py`, both languages side by side.
"""

from __future__ import annotations

import difflib
import os
import re

from dlcourse.words.table import WORDS

LANGUAGES = ("ko", "en")
_chosen: str | None = None


def set_language(lang: str) -> None:
    """Make `lang` ("ko" or "en") the language of this process. ValueError for another one."""
    global _chosen
    _chosen = _checked(lang, "lang")


def language() -> str:
    """The language in use: the one that was set, else DLCOURSE_LANG, else the system's, else "ko".

    The system's is in LC_ALL, LC_MESSAGES or LANG: the first of them that is not empty counts.
    ValueError for another DLCOURSE_LANG; a system in another language has Korean.
    """
    if _chosen:
        return _chosen
    if own := os.environ.get("DLCOURSE_LANG"):
        return _checked(own, "DLCOURSE_LANG")
    said = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    code = re.split(r"[^a-z]", next(filter(None, said), "").lower())[0]  # en_US.UTF-8: "en"
    return code if code in LANGUAGES else "ko"


def t(key: str, lang: str | None = None, **fmt: object) -> str:
    """The words of `key`, such as "panel.state.idle", with the fields in braces filled in.

    lang: "ko" or "en"; None is the language in use.
    fmt:  a value for each field of the words; a field may carry a format, as in "{count:,}".
    ValueError: an unknown key or language, or a field without a value.
    """
    position = LANGUAGES.index(_checked(lang, "lang") if lang is not None else language())
    if key not in WORDS:
        near = difflib.get_close_matches(key, WORDS, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(
            f"key={key!r} is not in the table of words{hint} "
            f"Add it, in both languages, to dlcourse/words/table.py."
        )
    words = WORDS[key][position]
    try:
        return words.format(**fmt)
    except KeyError as missing:
        raise ValueError(
            f"t({key!r}) needs a value for the field {missing}: "
            f"pass {missing.args[0]}=... (the words are {words!r})."
        ) from None


def _checked(lang: str, name: str) -> str:
    if lang not in LANGUAGES:
        raise ValueError(
            f"{name}={lang!r} is not a language of this course; "
            f'use "ko" (Korean) or "en" (English).'
        )
    return lang
