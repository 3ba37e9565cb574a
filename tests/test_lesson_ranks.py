"""A lesson that cannot run with any number of ranks says so at its start, with numbers that do."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from dlcourse.course import catalog
from dlcourse.figures import accumulation, expert_parallel, pipeline_parallel, tensor_parallel, zero
from dlcourse.formulas.devices import check_devices

# lesson -> how it checks, the numbers of ranks from 1 to 16 with which it runs, and a refusal
CHECKS: dict[str, tuple[Callable[[int], None], set[int], str]] = {
    "04": (
        tensor_parallel.check_ranks,
        {2, 4},
        "3 equal parts: a head stays whole, so use a divisor of 4",
    ),
    "05": (pipeline_parallel.check_ranks, {2, 4}, "num_ranks=3: .* so give 2 or 4$"),
    "06": (zero.check_ranks, set(range(2, 17)), "num_ranks=1: .* give 2 or more$"),
    "08": (expert_parallel.check_ranks, {2, 4, 8}, "num_experts=8 cannot be cut into 3"),
    "09": (accumulation.check_ranks, {1, 2, 4, 8, 16}, "num_ranks=3: .* so give a divisor of 16$"),
    "12": (check_devices, set(range(2, 17)), "num_ranks=1: .* give 2 or more$"),
}


@pytest.mark.parametrize("lesson", CHECKS)
def test_a_number_of_ranks_that_does_not_fit_is_refused_with_one_that_does(lesson):
    check, fit, words = CHECKS[lesson]
    refused = {}
    for num_ranks in range(17):
        try:
            check(num_ranks)
        except ValueError as error:
            refused[num_ranks] = str(error)
    assert set(range(17)) - refused.keys() == fit
    assert re.search(words, refused[3 if 3 in refused else 1])
    assert all(re.search(r"give|use", said) for said in refused.values()), refused


@pytest.mark.parametrize("lesson", CHECKS)
def test_the_lesson_asks_before_its_ranks_start(lesson):
    (path,) = (catalog.own_root() / "notebooks" / "source").glob(f"{lesson}_*/lesson.py")
    source = path.read_text(encoding="utf-8")
    asked = [source.find(f"\n{name}(") for name in ("check_ranks", "check_devices")]
    assert 0 < max(asked) < source.index("\nranks = Ranks(num_ranks")
