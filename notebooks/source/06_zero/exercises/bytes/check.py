"""Bytes in each rank at each stage of ZeRO."""

from dlcourse.course.exercises import as_number, expect, not_number

NAMES = ("bytes_per_rank",)
CASES = ("stage0", "stage1", "stage2", "stage3")
NUM_RANKS = 1
WHERE = "kernel"


def check(bytes_per_rank, rank, world_size):
    from dlcourse.formulas.states import state_bytes

    findings = []
    for stage in range(4):
        for num_parameters, ranks in ((1000, 1), (7.5e9, 4), (7.5e9, 64), (1e12, 1024)):
            sizes = state_bytes(num_parameters, precision="master", world_size=ranks, stage=stage)
            answer = bytes_per_rank(num_parameters, ranks, stage)
            want, got = sum(sizes.values()), as_number(answer)
            case = f"stage{stage}"
            if got is None:
                findings.append(not_number(case, answer))
                continue
            gib = abs(got * 2**30 / 1e9 - want) < 1e-6 * want
            findings.append(
                expect(
                    case,
                    abs(got - want) <= 1e-9 * want,
                    "gib" if gib else "off",
                    parameters=f"{num_parameters:g}",
                    ranks=ranks,
                    got=f"{got:.6g}",
                    want=f"{want:.6g}",
                    each=f"{got / num_parameters:.4g}",
                )
            )
    told = set()
    return [f for f in findings if f["ok"] or not (f["case"] in told or told.add(f["case"]))]
