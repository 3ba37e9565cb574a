"""How much is lost by believing the planner: of layouts that were measured, the one it likes best.

    for group in comparable(rows): print(group, regret(group))

Only runs of one model with one batch on as many GPUs are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlcourse.plan.published import Row, Rows, korthikanti, qwen3


def comparable(rows: Rows) -> list[list[Row]]:
    """Groups of published runs that differ in their layout alone; their figures are seconds."""
    old = korthikanti(rows)
    pairs = [[*old[number : number + 2]] for number in range(0, len(old), 2)]
    return [*pairs, qwen3(rows)]


def regret(group: Sequence[Row]) -> float:
    """Of the layout that is predicted the fastest, the time that was measured over the best one's,
    less 1: 0 where the planner chose as the measurement did.

    Raises:
        ValueError: an empty group.
    """
    if not group:
        raise ValueError("group is empty: give at least one run")
    chosen = min(group, key=lambda row: row.predicted)
    return chosen.measured / min(row.measured for row in group) - 1
