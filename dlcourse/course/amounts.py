"""Read the amounts that people type: "3.2 MB", "3e6", "12 ms", "50%", "4×", "x4"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_AMOUNT = re.compile(r"\s*([-+]?(?:\d[\d,_ ]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([^\d\s]*)\s*", re.I)
_BYTES = {"b": 1, "byte": 1, "bytes": 1, "바이트": 1}
_BYTES |= {f"{p}b": 1000**n for n, p in enumerate("kmgtp", 1)}  # MB: millions, as disks count
_BYTES |= {f"{p}ib": 1024**n for n, p in enumerate("kmgtp", 1)}  # MiB: as the figures count
_BYTES |= {p: 1000**n for n, p in enumerate("kmgtp", 1)}
_SECONDS = {"s": 1, "sec": 1, "초": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_SECONDS |= {"min": 60, "분": 60, "h": 3600, "시간": 3600}
_COUNTS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "천": 1e3, "만": 1e4, "억": 1e8}
_TIMES = {"×": 1, "x": 1, "배": 1, "times": 1}
_UNITS: dict[str, Mapping[str, float]] = {
    "bytes": _BYTES,
    "s": _SECONDS,
    "×": _TIMES,
    "%": {"%": 1},
}


def read_amount(text: str, unit: str = "") -> float:
    """The number that a learner typed, in bytes or seconds where ``unit`` is "bytes" or "s".

    Commas group digits; a unit is understood in any case of letters, "MB" as 10**6 bytes and "MiB"
    as 2**20. Without a unit, the number counts bytes or seconds.

    Raises:
        ValueError: it is no number, too large for one, or carries a unit of something else.
    """
    if unit == "×":
        text = re.sub(r"^\s*[×x]", "", text, flags=re.I)
    found = _AMOUNT.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no number: write one such as 3e6, 3,000,000 or 3.2")
    number, suffix = float(re.sub("[,_ ]", "", found[1])), found[2].lower()
    factors = _UNITS.get(unit, _COUNTS | {unit.lower(): 1})
    if suffix and suffix not in factors:
        raise ValueError(f"{text!r}: {found[2]!r} is no unit of this amount; use {unit or 'none'}")
    amount = number * factors.get(suffix, 1)
    if not math.isfinite(amount):
        raise ValueError(f"{text!r} is no number that can be compared: write a smaller one")
    return amount
