"""The fewest micro-batches that keep the bubble below a limit."""

from dlcourse.course.exercises import describe, expect

NAMES = ("fewest",)
CASES = ("few", "many", "exact", "deep", "alone")
NUM_RANKS = 1


def check(fewest, rank, world_size):
    from dlcourse.formulas.bubbles import idle_over_ideal, idle_over_total

    findings = []
    for case, p, limit in (
        ("few", 4, 0.5),
        ("many", 4, 0.1),
        ("exact", 5, 0.2),
        ("deep", 8, 0.03),
        ("alone", 1, 0.01),
    ):
        got = fewest(p, limit)
        want = next(m for m in range(1, 1000) if idle_over_total(p, m) <= limit + 1e-12)
        if type(got) is not int or got < 1:
            findings.append(expect(case, False, "not_a_number", got=describe(got)))
            continue
        idle = f"{idle_over_total(p, got):.1%}"
        values = {"p": p, "limit": f"{limit:.0%}", "got": got, "idle": idle}
        ideal = next(m for m in range(1, 10000) if idle_over_ideal(p, m) <= limit + 1e-12)
        key = "ideal" if got == ideal != want else "too_few" if got < want else "more_than_needed"
        findings.append(expect(case, got == want, key, **values))
    return findings
