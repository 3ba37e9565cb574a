"""What a learner has passed, kept beside the guesses, and shown as ticks on the start page.

As with guesses (`guesses.py`): a file of the learner's own, outside the course, one line of JSON
for each exercise at its first passed check, written only where a person is there. The start page on
disk is the course's and stays as it is: the ticks are put in when Jupyter's server reads it, and
taken out of what is saved.
"""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dlcourse.course import guesses

FILE = "passed.jsonl"
START_PAGE = re.compile(r"(^|/)(ko|en)/index\.md$")
_ROW = re.compile(r"^\| (\d\d)(?: (?:✓|\d+/\d+))? \|", re.MULTILINE)  # with ticks or without


def keep_passed(id: str) -> bool:
    """Write down that an exercise's check has passed, once; False where that cannot be written."""
    return id in read_passed() or guesses.append(FILE, id=id, when=round(time.time()))


def read_passed() -> dict[str, float]:
    """Exercise -> when its check passed first, in seconds since 1970; what can be read of it."""
    passed: dict[str, float] = {}
    for line in guesses.lines(FILE):
        try:
            entry = json.loads(line)
            passed.setdefault(str(entry["id"]), float(entry["when"]))
        except (ValueError, TypeError, KeyError):  # cut off, or not ours
            continue
    return dict(sorted(passed.items()))


def progress_rows(passed: Mapping[str, float], ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """For each lesson, by its two digits, how many of its exercises have passed, and of how many.

    ids: of all exercises of the course.
    """
    rows: dict[str, tuple[int, int]] = {}
    for id in ids:
        good, total = rows.get(id[:2], (0, 0))
        rows[id[:2]] = (good + (id in passed), total + 1)
    return rows


def with_ticks(page: str, rows: Mapping[str, tuple[int, int]]) -> str:
    """The start page with a tick at each lesson whose exercises have passed, or their number."""

    def marked(row: re.Match[str]) -> str:
        good, total = rows.get(row[1], (0, 0))
        mark = "" if good == 0 else " ✓" if good == total else f" {good}/{total}"
        return f"| {row[1]}{mark} |"

    return _ROW.sub(marked, page)


def show_on_start_page(manager: Any, ids: Callable[[], Sequence[str]]) -> None:
    """Let a contents manager of Jupyter's server give the start page with the learner's ticks.

    ids: gives those of all exercises of the course.
    """
    get = manager.get

    def marked(path: str, model: dict[str, Any]) -> dict[str, Any]:
        if START_PAGE.search(path) and isinstance(model.get("content"), str):
            rows = progress_rows(read_passed(), ids())
            model["content"] = with_ticks(model["content"], rows)
        return model

    if inspect.iscoroutinefunction(get):

        async def get_later(path: str, *args: Any, **options: Any) -> Any:
            return marked(path, await get(path, *args, **options))

        manager.get = get_later
    else:
        manager.get = lambda path, *args, **options: marked(path, get(path, *args, **options))
    manager.register_pre_save_hook(_without_ticks)


def _without_ticks(model: dict[str, Any], path: str, **_: Any) -> None:
    if START_PAGE.search(path) and isinstance(model.get("content"), str):
        model["content"] = with_ticks(model["content"], {})
