"""A configuration from a file, from pasted text or from a dict, or why it cannot be read.

JSON is what transformers, Accelerate and most tools read. DeepSpeed itself reads Hjson, which
forgives a trailing comma and takes ``True`` for the text "True": a file that only it can read is
refused here with line and column, and that is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlcourse.words.strings import t

_SHOWN = 72  # columns of a wrong line around its column
MAX_BYTES = 4 * 1024 * 1024  # no configuration is as large; a checkpoint given by mistake is


@dataclass
class Source:
    """What was read. ``twice``: paths of keys that a JSON object has more than once."""

    config: dict[str, Any]
    name: str = ""
    twice: list[str] = field(default_factory=list)


def read(source: Any) -> Source:
    """Read a path, a text that is JSON, or a mapping.

    Raises:
        ValueError: no such file, a directory, an empty or malformed text (line, column, the line
            with a caret and its usual cause), or JSON that is not an object.
    """
    if isinstance(source, Mapping):
        return _checked(Source(_plain(source)))
    if isinstance(source, bytes):
        source = _decoded(source, t("explain.bad.text"))
    if isinstance(source, str) and _is_text(source):
        return _parsed(source, "")
    try:
        path = Path(source).expanduser()
        found = path.exists()
    except (TypeError, ValueError, OSError, RuntimeError):
        raise ValueError(t("explain.bad.source", source=_short(repr(source)))) from None
    if not found:
        raise ValueError(t("explain.bad.missing", path=path))
    if path.is_dir():
        files = ", ".join(sorted(p.name for p in path.glob("*.json"))[:5])
        raise ValueError(t("explain.bad.folder", path=path, files=files or t("explain.bad.none")))
    if not path.is_file():
        raise ValueError(t("explain.bad.special", path=path))
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(t("explain.bad.large", path=path, size=path.stat().st_size))
        text = _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(t("explain.bad.unreadable", path=path, why=error.strerror)) from None
    return _parsed(text, str(path))


def _is_text(source: str) -> bool:
    """Pasted, not a path: an object or array, several lines, or nothing."""
    return (
        not source.strip()
        or (
            source.lstrip("\ufeff \t\r\n")[:1] in "{[\"'/#"
            and (not Path(source[:200]).is_absolute() or "\n" in source)
        )
        or "\n" in source.strip()
    )


def _parsed(text: str, name: str) -> Source:
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise ValueError(t("explain.bad.empty", name=name or t("explain.bad.text")))
    pairs: list[tuple[dict[str, Any], list[str]]] = []

    def noting(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            names = [key for key, _ in items]
            pairs.append((made, [key for key in made if names.count(key) > 1]))
        return made

    try:
        config = json.loads(text, object_pairs_hook=noting)
    except json.JSONDecodeError as error:
        raise ValueError(_malformed(error, name)) from None
    except RecursionError:
        raise ValueError(t("explain.bad.deep", name=name or t("explain.bad.text"))) from None
    except ValueError:  # a number with thousands of digits
        raise ValueError(t("explain.bad.digits", name=name or t("explain.bad.text"))) from None
    twice = [
        f"{path}.{key}".lstrip(".")
        for made, keys in pairs
        for path in [_path_of(config, made)]
        for key in keys
        if path is not None
    ]
    return _checked(Source(config, name, twice))


def _checked(source: Source) -> Source:
    config: Any = source.config
    if not isinstance(config, dict):
        kind = "[…]" if isinstance(config, list) else _short(json.dumps(config))
        raise ValueError(t("explain.bad.object", kind=kind))
    return source


def _path_of(config: Any, wanted: dict, path: str = "") -> str | None:
    if config is wanted:
        return path
    items = config.items() if isinstance(config, dict) else ()
    for key, value in items:
        if (found := _path_of(value, wanted, f"{path}.{key}".lstrip("."))) is not None:
            return found
    return None


def _malformed(error: json.JSONDecodeError, name: str) -> str:
    """Line, column, the line with a caret under the column, and the usual cause."""
    lines = error.doc.splitlines() or [""]
    number = min(error.lineno, len(lines))
    line = lines[number - 1].expandtabs(1)
    column = error.colno if number == error.lineno else len(line) + 1
    first = max(0, column - _SHOWN // 2)
    shown, place = line[first : first + _SHOWN], column - 1 - first
    from wcwidth import wcswidth  # a Korean letter is two columns wide

    wide = max(0, wcswidth(shown[:place])) + max(0, place - len(shown))
    head = t("explain.bad.json", line=error.lineno, column=error.colno, why=error.msg)
    if name:
        head = f"{name}: {head}"
    prefix = f"{number} | "
    cause = t(f"explain.cause.{_cause(error)}")
    return "\n".join([head, prefix + shown, " " * (len(prefix) + wide) + "^", cause])


def _cause(error: json.JSONDecodeError) -> str:
    """The usual mistake that looks like this one."""
    here, before = error.doc[error.pos :], error.doc[: error.pos].rstrip()
    if here.startswith(("//", "#", "/*")):
        return "comment"
    if not here.strip():
        return "cut"
    if here[0] in "'‘’“”":
        return "quotes"
    for word in ("True", "False", "None"):
        if here.startswith(word):
            return "python"
    if (before.endswith(",") and here.lstrip()[:1] in ("}", "]")) or (
        here.startswith(",") and here[1:].lstrip()[:1] in ("}", "]")
    ):
        return "trailing"
    if error.msg.startswith("Extra data"):
        return "extra"
    if "delimiter" in error.msg:
        return "comma"
    if "property name" in error.msg:
        return "name"
    return "value"


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(t("explain.bad.utf8", name=name, byte=error.start)) from None


def _plain(value: Any, depth: int = 0) -> Any:
    """A dict of our own: what the caller changes later changes nothing here."""
    if depth > 100:
        raise ValueError(t("explain.bad.deep", name="dict"))
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    return value


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
