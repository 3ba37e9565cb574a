"""Numbers as people read them: bytes in KiB and MiB, seconds in ms and us, counts in k and M."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def byte_scale(largest: float) -> tuple[float, str]:
    """Bytes in one unit, and the unit's name, in which `largest` bytes read best."""
    divisor, unit = 1.0, _BYTES[0]
    for unit in _BYTES:
        # Above single bytes, 1000 and not 1024: "0.99 MiB" reads better than "1,010 KiB".
        if abs(largest) < (1024 if unit == "B" else 1000 * divisor) or unit == _BYTES[-1]:
            break
        divisor *= 1024
    return divisor, unit


def second_scale(largest: float) -> tuple[float, str]:
    """Seconds in one unit, and the unit's name, in which `largest` seconds read best."""
    for divisor, unit in _SECONDS:
        if abs(largest) >= divisor:
            return divisor, unit
    return (1.0, "s") if largest == 0 else _SECONDS[-1]


def digits(value: float) -> str:
    """Three significant digits without an exponent: 1234.5 is "1,234", 0.01234 is "0.0123".

    What training that fails computes is shown as Python does: "nan", "inf".
    """
    if not math.isfinite(value):
        return str(float(value))
    size = abs(value)
    if abs(value - round(value)) <= 1e-9 * size and size < 1e15:
        return f"{round(value):,}"
    decimals = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    if size >= 0.00995:
        return f"{value:,.{decimals if size >= 0.0995 else 4}f}"
    return f"{value:.3g}"


def apart_text(value: float) -> str:
    """How far two results are apart, in two digits: "4.8e-07", and "0" where no bit differs."""
    return f"{value:.1e}" if value else "0"


def human_bytes(count: float) -> str:
    """3491840 bytes are "3.33 MiB"."""
    if not math.isfinite(count):
        return digits(count)
    divisor, unit = byte_scale(count)
    return f"{digits(count / divisor)} {unit}"


def human_seconds(seconds: float) -> str:
    """0.00123 seconds are "1.23 ms"."""
    if not math.isfinite(seconds):
        return digits(seconds)
    divisor, unit = second_scale(seconds)
    return f"{digits(seconds / divisor)} {unit}"


def human_count(count: float) -> str:
    """872960 is "873 k"; below 10,000 the number itself."""
    if abs(count) < 10_000 or not math.isfinite(count):
        return digits(count)
    divisor, unit = next((d, u) for d, u in _COUNTS if abs(count) >= d)
    return f"{digits(count / divisor)} {unit}"


def rank_ranges(ranks: Sequence[int]) -> str:
    """[0, 1, 2, 5] is "0-2, 5"."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
