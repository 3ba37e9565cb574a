"""What `Ranks(...)` and `ranks=` refuse, before anything starts."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from dlcourse import machine
from dlcourse.ranks.display import in_words
from dlcourse.ranks.machines import of_this_run
from dlcourse.words.units import rank_ranges

DEVICES = ("auto", "cpu", "cuda", "mps")
TIMEOUTS = (0.1, 1e9)  # seconds: what torch and its transport can count


def check(n: object, device: object, timeout: object) -> None:
    """Refuse what cannot be, before anything starts."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: the number of ranks must be a whole number of at least 1")
    fitting = machine.fitting_ranks()
    # What several machines hold is asked only where one does not hold it all.
    if n > fitting and n > fitting * of_this_run().used_for(n):
        need = (machine.SHARED_BYTES + n * machine.RANK_BYTES) / 1e9
        raise ValueError(
            f"n={n}: {n} ranks need about {need:.1f} GB of memory, and this machine has "
            f"{machine.memory_bytes() / 1e9:.1f} GB: at most {fitting} would fit. "
            f"Use Ranks({min(fitting, 4)}); the planner shows thousands of ranks without "
            "processes."
        )
    if device not in DEVICES:
        raise ValueError(f"device={device!r}: must be one of {', '.join(map(repr, DEVICES))}")
    if device == "mps" and n > 1:
        raise ValueError(f"n={n} with device='mps': an Apple GPU serves one process. Use Ranks(1).")
    least, most = TIMEOUTS
    number = timeout if isinstance(timeout, int | float) else None
    if number is None or isinstance(timeout, bool) or not least <= number <= most:
        raise ValueError(
            f"timeout={timeout!r}: must be a number of seconds from {least:g} to {most:g}; "
            f"timeout={most:g} is for ever"
        )


def chosen_ranks(ranks: Iterable[int] | None, size: int) -> list[int]:
    """The ranks that take part; raises ValueError for one that does not exist."""
    if ranks is None:
        return list(range(size))
    try:
        given = list(ranks)
        chosen = sorted({operator.index(r) for r in given})  # numbers of NumPy too
    except TypeError:
        given, chosen = [True], []
    if any(isinstance(r, bool) for r in given):
        raise ValueError(
            f"ranks={in_words(ranks, limit=100)}: give their numbers, as in ranks=[0, 2]; "
            f"there are ranks 0-{size - 1}"
        )
    wrong = [r for r in chosen if not 0 <= r < size]
    if wrong or not chosen:
        raise ValueError(
            f"ranks={rank_ranges(wrong) if wrong else 'none'}: there are ranks 0-{size - 1}. "
            f"Name some of these, or make more: Ranks({max([*wrong, 0]) + 1})"
        )
    return chosen


def check_name(name: object) -> None:
    """Refuse what cannot be the name of a variable, such as a slice or the number of a rank."""
    if not isinstance(name, str):
        raise ValueError(
            f"ranks[{in_words(name, limit=100)}]: give the name of a variable of the ranks, as "
            'text; ranks["x"][0] is the x of rank 0'
        )
