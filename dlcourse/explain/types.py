"""Whether a value is of a type, as pydantic takes it for one.

Types are written as in ``keys.json``: "int", "bool|null", "none|cpu|nvme".
"""

from __future__ import annotations

import math
from typing import Any

_SWITCHES = {"0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes"}
_COMPARE = {
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
}


def kind_of(value: Any) -> str:
    """ "null", "bool", "number", "string", "list" or "object"."""
    if value is None:
        return "null"
    kinds = {bool: "bool", int: "number", float: "number", str: "string", list: "list"}
    return kinds.get(type(value), "object")


def fits(value: Any, type: str, bounds: str = "") -> bool:
    """Whether pydantic would take ``value`` for a field of this type and these bounds."""
    return any(_fits(value, part) for part in type.split("|")) and _within(value, bounds)


def _fits(value: Any, type: str) -> bool:
    match type:
        case "null":
            return value is None
        case "bool":
            if isinstance(value, str):
                return value.lower() in _SWITCHES
            return isinstance(value, bool | int | float) and value in (0, 1)
        case "int":
            if isinstance(value, str) and not value.strip().lstrip("+-").isdigit():
                return False  # "1e5"
            found = _number(value)
            return found is not None and found == math.floor(found)
        case "float":
            return _number(value) is not None or value in (math.inf, -math.inf)
        case "string" | "Path":
            return isinstance(value, str)
        case "list":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case "any":
            return True
        case "dtype":
            return False  # a torch.dtype, which JSON has not
    return not isinstance(value, bool) and str(value) == type


def _number(value: Any) -> float | None:
    if isinstance(value, bool | int | float | str):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            return None
        return found if math.isfinite(found) else None
    return None


def _within(value: Any, bounds: str) -> bool:
    found = _number(value)
    if not bounds or found is None:
        return True
    parts = [part.split() for part in bounds.split(" and ")]
    return all(_COMPARE[sign](found, float(limit)) for sign, limit in parts)
