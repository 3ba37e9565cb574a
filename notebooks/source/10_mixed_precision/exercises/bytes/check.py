"""Bytes between steps in four kinds of precision."""

from dlcourse.course.exercises import as_number, describe, expect

from ..common import first_failures

NAMES = ("bytes_between_steps",)
CASES = ("float32", "autocast", "master", "bfloat16")
NUM_RANKS = 1
WHERE = "kernel"


def check(bytes_between_steps, rank, world_size):
    from dlcourse.formulas.recipe import PRECISIONS
    from dlcourse.formulas.states import state_bytes

    findings = []
    for way in PRECISIONS:
        for num_parameters in (1000, 873_728, 7_500_000_000):
            answer = bytes_between_steps(num_parameters, way)
            want, got = sum(state_bytes(num_parameters, precision=way).values()), as_number(answer)
            if got is None:
                findings.append(expect(way, False, "not_a_number", got=describe(answer)))
                continue
            each = got / num_parameters
            findings.append(
                expect(
                    way,
                    abs(got - want) <= 1e-9 * want,
                    "each" if each < 1 else "many" if got > want else "few",
                    each=f"{each:.4g}",
                )
            )
    return first_failures(findings)
