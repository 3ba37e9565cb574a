"""Which keys a version of DeepSpeed knows: from the one installed, else from the recorded table.

``keys.json`` holds the tables of several versions, each made from that version itself by
``peers/deepspeed_keys.py``. So a key that is gone is told from one that never was.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dlcourse.words.strings import t

RECORDED = Path(__file__).parent / "keys.json"
NEAR = 0.72  # of difflib's ratio: "train_batchsize" is near, "bits" is not near "bf16"


@dataclass(frozen=True)
class Key:
    """One key of a version.

    block:      "" for a value, else what happens to keys in it that DeepSpeed does not know:
                "model" refuses them, "read" ignores them, "open" hands them on.
    also:       what may stand in place of a block: "null", "bool", "number", "string", "list".
    refuses:    kinds of values at which DeepSpeed fails, where no model has a type; "string" is of
                a text that nobody knows.
    deprecated: the key that took its place; None where it is not deprecated.
    """

    path: str
    type: str = ""
    bounds: str = ""
    default: Any = None
    has_default: bool = False
    block: str = ""
    also: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    deprecated: str | None = None


class Keys:
    """The keys of one version.

    version:    of DeepSpeed.
    installed:  whether they come from the installed DeepSpeed itself.
    asked_for:  a version that is not recorded, in whose place this one stands; else "".
    """

    def __init__(
        self, version: str, table: dict[str, Any], *, installed: bool = False, asked_for: str = ""
    ) -> None:
        self.version, self.table = version, table
        self.installed, self.asked_for = installed, asked_for
        self.removed: dict[str, str] = table["removed"]
        self.optimizers: dict[str, dict[str, Any]] = table["optimizers"]
        self.schedulers: dict[str, dict[str, Any]] = table["schedulers"]
        self.optimizer_options: dict[str, None] = table["optimizer_options"]

    def get(self, path: str) -> Key | None:
        """A key by its path; an alias gives the key that it stands for. None: not known."""
        if path == "":
            return Key("", block="read")
        block, _, name = path.rpartition(".")
        entry = self.table["keys"].get(block, {}).get(name)
        if entry is None:
            return None
        if "alias" in entry:
            return self.get(f"{block}.{entry['alias']}")
        return Key(
            path=path,
            type=entry.get("type", ""),
            bounds=entry.get("bounds", ""),
            default=entry.get("default"),
            has_default="default" in entry,
            block=entry.get("block", ""),
            refuses=tuple(entry.get("refuses", ())),
            also=tuple(entry.get("also", ())),
            deprecated=entry.get("deprecated"),
        )

    def names(self, block: str) -> list[str]:
        """The keys of a block."""
        return list(self.table["keys"].get(block, {}))

    def paths(self) -> Iterator[str]:
        """All keys, also aliases."""
        for block, names in self.table["keys"].items():
            yield from (f"{block}.{name}" if block else name for name in names)

    def nearest(self, path: str) -> str | None:
        """The known key that ``path`` is most likely meant to be: in its block, else anywhere."""
        block, _, name = path.rpartition(".")
        here = difflib.get_close_matches(name, self.names(block), n=1, cutoff=NEAR)
        if here:
            return f"{block}.{here[0]}".lstrip(".")
        same = [known for known in self.paths() if known.rpartition(".")[2] == name]
        if same:
            return same[0]
        everywhere = {known.rpartition(".")[2]: known for known in self.paths()}
        found = difflib.get_close_matches(name, everywhere, n=1, cutoff=0.85)
        return everywhere[found[0]] if found else None


@cache
def recorded() -> dict[str, dict[str, Any]]:
    """The table of each recorded version, the newest last."""
    tables = json.loads(RECORDED.read_text(encoding="utf-8"))["versions"]
    return dict(sorted(tables.items(), key=lambda item: _parts(item[0])))


def keys_of(version: str | None, installed: tuple[str, dict[str, Any]] | None) -> Keys:
    """The keys of a version.

    Args:
        version: such as "0.16.9"; None is the installed one, else the newest that is recorded.
        installed: version and table of the DeepSpeed in this environment, where there is one.

    Raises:
        ValueError: not a version.
    """
    if installed and version in (None, installed[0]):
        return Keys(*installed, installed=True)
    tables = recorded()
    if version is None:
        version = list(tables)[-1]
    if version in tables:
        return Keys(version, tables[version])
    if not all(part.isdigit() for part in version.split(".")):
        known = ", ".join(tables)
        raise ValueError(t("explain.bad.version", version=version, known=known))
    older = [known for known in tables if _parts(known) <= _parts(version)]
    nearest = older[-1] if older else next(iter(tables))
    return Keys(nearest, tables[nearest], asked_for=version)


def versions_with(path: str) -> list[str]:
    """The recorded versions that know a key, the oldest first."""
    return [version for version, table in recorded().items() if Keys(version, table).get(path)]


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
