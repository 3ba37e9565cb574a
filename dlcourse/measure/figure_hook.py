"""How a run gets its figures: what is measured knows nothing of what draws it.

`dlcourse/__init__.py`, which knows every folder, says who draws. That is imported with the first
figure: a kernel that shows none never loads plotly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_load: Callable[[str], Callable[..., Any]] | None = None


def draw_with(load: Callable[[str], Callable[..., Any]]) -> None:
    """`load("memory")` gives the function that draws the data of that name, in a language."""
    global _load
    _load = load


def draw(name: str, data: dict[str, Any], lang: str | None) -> Any:
    """The figure of one part of a run (plotly)."""
    if _load is None:
        raise RuntimeError(
            f"nothing draws the {name} of a run: import dlcourse, which says what does"
        )
    return _load(name)(data, lang)
