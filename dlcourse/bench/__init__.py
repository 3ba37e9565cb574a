"""The course's own speed and size, as ratios measured in one run. One module for each subject."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from importlib import import_module


def names() -> list[str]:
    """Every subject that can be measured: a module here with ``main(argv) -> int``."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def main(chosen: Sequence[str] = ()) -> int:
    """Measure the chosen subjects, or all; 0 where every target is met.

    Args:
        chosen: subjects; or one, and then options of its own.

    Raises:
        ValueError: there is no such subject.
    """
    if len(chosen) > 1 and chosen[1].startswith("-") and chosen[0] in names():
        return import_module(f"{__name__}.{chosen[0]}").main(chosen[1:])
    for name in chosen:
        if name not in names():
            raise ValueError(f"nothing named {name!r} to measure: choose from {', '.join(names())}")
    return max([import_module(f"{__name__}.{name}").main([]) for name in chosen or names()])
