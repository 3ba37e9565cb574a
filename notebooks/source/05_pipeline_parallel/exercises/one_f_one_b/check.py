"""One rank's line of 1F1B."""

from dlcourse.course.exercises import entered, expect, expect_own

from ..common import LIBRARIES, judge_schedule

NAMES = ("my_line",)
CASES = ("small", "lesson", "tight", "alone", "own")
NUM_RANKS = 1


def check(my_line, rank, world_size):
    findings, used = [], set()
    for case, w, m in (("small", 2, 4), ("lesson", 4, 8), ("tight", 5, 5), ("alone", 1, 3)):
        with entered(*LIBRARIES) as libraries:
            lines = [my_line(r, w, m) for r in range(w)]
        used |= libraries
        found, _ = judge_schedule(
            lines,
            num_ranks=w,
            micro_batches=m,
            activations=[w - r for r in range(w)],
            total=3 * (m + w - 1),
        )
        bad = next((finding for finding in found if not finding["ok"]), None)
        findings.append(expect(case, True) if bad is None else {**bad, "case": case})
    return [*findings, expect_own("own", used)]
