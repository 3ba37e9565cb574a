"""A learner's own copy of the notebooks, where the course was installed as a wheel.

Never overwritten once changed: a file is replaced by a newer version's only if it is still, byte
for byte, the one that was copied. A list of what was copied lies beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from dlcourse.course import catalog

COPIED = ".dlcourse.json"  # in notebooks/: each file as it was copied, by its SHA-256


@dataclass(frozen=True)
class Copied:
    """What a copy did; paths below the learner's folder."""

    new: list[Path]  # written now
    kept: list[Path]  # changed by the learner, while the course has another version than before


def copy_lessons(root: Path, folder: Path) -> Copied:
    """Copy the built notebooks of the course at ``root`` into ``folder``/notebooks.

    Raises:
        OSError: the folder may not be written, or the disk is full.
    """
    record = folder / "notebooks" / COPIED
    before = _read(record)
    now: dict[str, str] = {}
    new, kept = [], []
    for lang in catalog.LANGUAGES:
        for source in sorted((root / "notebooks" / lang).glob("[!.]*.*")):
            name = f"{lang}/{source.name}"
            target = folder / "notebooks" / lang / source.name
            content = source.read_bytes()
            now[name] = sha256(content).hexdigest()
            if target.exists():
                present = sha256(target.read_bytes()).hexdigest()
                if present == now[name]:
                    continue
                if present != before.get(name):
                    if now[name] != before.get(name):
                        kept.append(target.relative_to(folder))
                    continue
            target.parent.mkdir(parents=True, exist_ok=True)
            whole = target.with_name(f".{target.name}.part")  # a full disk leaves no half lesson
            whole.write_bytes(content)
            whole.replace(target)
            new.append(target.relative_to(folder))
    if now != before:
        record.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    return Copied(new, kept)


def _read(record: Path) -> dict[str, str]:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or broken: then every file that differs is kept
        return {}
