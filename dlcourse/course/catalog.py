"""The sixteen lessons: their names, where their files are, and how a user may name one."""

from __future__ import annotations

import os
from pathlib import Path

from dlcourse.words.strings import read_words

LANGUAGES = ("ko", "en")
INDEX = "index"

# A lesson's source, notebooks, module and tests carry the same name.
LESSONS = (
    "00_start",
    "01_collectives",
    "02_backends",
    "03_data_parallel",
    "04_tensor_parallel",
    "05_pipeline_parallel",
    "06_zero",
    "07_moe",
    "08_expert_parallel",
    "09_accumulation",
    "10_mixed_precision",
    "11_checkpointing",
    "12_sharding_offload",
    "13_memory_anatomy",
    "14_deepspeed_vs_mps",
    "15_choosing",
)


# A wheel carries the course here; a repository has it beside the package.
_INSTALLED = Path(__file__).resolve().parents[1] / "_course"


def course_root() -> Path:
    """Folder that holds ``notebooks/`` and ``data/``; ``DLCOURSE_ROOT`` names another."""
    chosen = os.environ.get("DLCOURSE_ROOT")
    return Path(chosen) if chosen else own_root()


def own_root() -> Path:
    """The course's own folder, whatever ``DLCOURSE_ROOT`` names."""
    return _INSTALLED if _INSTALLED.is_dir() else Path(__file__).resolve().parents[2]


def is_installed(root: Path) -> bool:
    """Whether this is the course inside an installed wheel, which nobody is to write into."""
    return root == _INSTALLED


def sources(root: Path) -> list[Path]:
    """Lesson sources that exist, in lesson order."""
    return sorted((root / "notebooks" / "source").glob("[0-9][0-9]_*/lesson.py"))


def room(root: Path, name: str) -> Path:
    """Folder of all that is one lesson's own."""
    return root / "notebooks" / "source" / name


def words_path(root: Path, name: str) -> Path:
    """The file of the words that only this lesson uses, its title among them."""
    return room(root, name) / "words.toml"


def title(root: Path, name: str, lang: str) -> str:
    return own_words(root, name, "title")[lang]


def question(root: Path, name: str, lang: str) -> str:
    """The question that the lesson answers."""
    return own_words(root, name, "question")[lang]


def source_path(root: Path, name: str) -> Path:
    """A lesson's source is in its room; the start page has no room."""
    folder = root / "notebooks" / "source"
    return folder / f"{name}.py" if name == INDEX else room(root, name) / "lesson.py"


def name_of(source: Path) -> str:
    """Name of the lesson (or "index") whose source this file is."""
    return source.parent.name if source.name == "lesson.py" else source.stem


def notebook_path(root: Path, lang: str, name: str) -> Path:
    return root / "notebooks" / lang / f"{name}.ipynb"


def written_lessons(root: Path) -> list[str]:
    """Names of the lessons that have a source."""
    return [name_of(path) for path in sources(root)]


def all_lessons(root: Path) -> list[str]:
    """Every lesson of the course, written or not, in order."""
    return sorted({*LESSONS, *written_lessons(root)}) if _is_course(root) else written_lessons(root)


def find_lesson(text: str | int, root: Path) -> str:
    """Return the full name of a written lesson given as ``3``, ``"03"``, ``"data_parallel"`` …

    Raises:
        ValueError: no such lesson, or one that is not written yet; says which there are.
    """
    wanted = str(text).strip().removesuffix(".ipynb").removesuffix(".py")
    written = written_lessons(root)
    for name in written:
        number, _, words = name.partition("_")
        if wanted in (name, words) or (wanted.isdecimal() and int(wanted) == int(number)):
            return name
    planned = [n for n in all_lessons(root) if n not in written]
    state = "is not written yet" if wanted in planned else "is unknown"
    choices = ", ".join(written) if written else "none is written yet"
    raise ValueError(f"lesson {wanted!r} {state}; choose one of: {choices}")


def check_language(lang: str) -> str:
    """Return ``lang``, or raise ``ValueError`` naming the two that exist."""
    if lang not in LANGUAGES:
        raise ValueError(f"lang={lang!r} is unknown; choose one of: {', '.join(LANGUAGES)}")
    return lang


def own_words(root: Path, name: str, key: str) -> dict[str, str]:
    """A text of the lesson's own, by language; it need not be the lesson that runs.

    Raises:
        ValueError: the room has no such words.
    """
    path = words_path(root, name)
    try:
        return read_words(path)[key]
    except KeyError:
        raise ValueError(f"{path} has no [{key}]: add it in both languages") from None


def _is_course(root: Path) -> bool:
    """True for the course itself, False for a small tree of a test."""
    return root == own_root()
