"""From which size on the second backend is the faster one."""

from dlcourse.course.exercises import as_number, describe, expect

NAMES = ("overtakes",)
CASES = ("later", "close", "always", "never", "same_rate", "same_start", "equal")
NUM_RANKS = 1
WHERE = "kernel"

_PAIRS = {  # first, second: (alpha, beta) each; the size, or None
    "later": ((1e-5, 2e-9), (1e-4, 5e-10), 60_000),
    "close": ((1e-4, 1e-9), (2e-4, 9.9e-10), 1e7),
    "always": ((1e-4, 1e-9), (1e-5, 5e-10), 0),
    "never": ((1e-5, 5e-10), (1e-4, 1e-9), None),
    "same_rate": ((1e-5, 1e-9), (2e-5, 1e-9), None),
    "same_start": ((1e-5, 1e-9), (1e-5, 5e-10), 0),
    "equal": ((1e-5, 1e-9), (1e-5, 1e-9), 0),
}


def check(overtakes, rank, world_size):
    return [_judge(case, want, overtakes(a, b)) for case, (a, b, want) in _PAIRS.items()]


def _judge(case, want, got):
    if want is None:
        return expect(case, got is None, "never", got=describe(got))
    size = as_number(got)
    if size is None:
        return expect(case, False, "size", got=describe(got), want=f"{want:,.0f}")
    off = abs(size - want) <= 1e-6 * max(want, 1)
    key = "negative" if size < 0 else "off"
    return expect(case, off, key, got=f"{size:,.0f}", want=f"{want:,.0f}")
