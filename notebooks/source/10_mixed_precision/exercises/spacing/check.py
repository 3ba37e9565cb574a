"""The gap between a number and the next one, by the bits of its type."""

from dlcourse.course.exercises import as_number, describe, expect

from ..common import first_failures

NAMES = ("spacing",)
CASES = ("one", "powers", "between")
NUM_RANKS = 1
WHERE = "kernel"

XS = {
    "one": [1.0],
    "powers": [2.0, 1024.0, 0.5, 2.0**-10],
    "between": [3.0, 1.999, 100.0, 0.7, 0.001],
}
BITS = (7, 10, 23, 2)  # bfloat16, float16, float32, float8_e5m2


def check(spacing, rank, world_size):
    from dlcourse.formulas.number_formats import spacing as right

    findings = []
    for case, xs in XS.items():
        for x in xs:
            for bits in BITS:
                answer, want = spacing(x, bits), right(x, bits)
                got = as_number(answer)
                if got is None:
                    findings.append(expect(case, False, "not_a_number", got=describe(answer)))
                    continue
                ok = abs(got - want) <= 1e-9 * want
                values = {"x": f"{x:g}", "bits": bits, "got": f"{got:.4g}", "want": f"{want:.4g}"}
                findings.append(expect(case, ok, "gap", **values))
    return first_failures(findings)
