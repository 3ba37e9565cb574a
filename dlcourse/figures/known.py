"""What a reader chose by its name, from a table of what there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


def known(name: str, chosen: str, table: Mapping[str, Value]) -> Value:
    """What ``table`` has under the name that was ``chosen`` for the parameter ``name``.

    Raises:
        ValueError: it has nothing under it; says what it has.
    """
    if chosen not in table:
        raise ValueError(f"{name}={chosen!r} is unknown: give one of {', '.join(table)}")
    return table[chosen]
