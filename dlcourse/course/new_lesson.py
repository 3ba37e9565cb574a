"""Make the room of a new lesson from ``template/``: empty, but it builds and its checks pass."""

from __future__ import annotations

import re
from pathlib import Path

from dlcourse.course import catalog
from dlcourse.course.source import accept_translations

TEMPLATE = Path(__file__).parent / "template"
_NAME = re.compile(r"\d\d_[a-z][a-z0-9]*(_[a-z0-9]+)*")


def new_lesson(root: Path, name: str) -> list[Path]:
    """Write the files of a new room; returns them. What the room has already stays as it is.

    Args:
        root: the course's folder.
        name: two digits and words, as ``"16_speculative_decoding"``.

    Raises:
        ValueError: not such a name, a number that another lesson has, or a lesson that exists.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name={name!r}: give two digits and words in small letters, as 16_my_lesson"
        )
    room = catalog.room(root, name)
    if (room / "lesson.py").exists():
        raise ValueError(f"lesson {name} exists: {(room / 'lesson.py').relative_to(root)}")
    for other in catalog.all_lessons(root):
        if other[:2] == name[:2] and other != name:
            raise ValueError(f"number {name[:2]} is taken by {other}: choose another one")
    written = []
    for source in sorted(p for p in TEMPLATE.rglob("*") if p.suffix in (".py", ".toml")):
        target = room / source.relative_to(TEMPLATE)
        if not target.exists():
            text = source.read_text(encoding="utf-8")
            text = text.replace("NN_name", name).replace("NN", name[:2])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            written.append(target)
    accept_translations(room / "lesson.py")
    return written
