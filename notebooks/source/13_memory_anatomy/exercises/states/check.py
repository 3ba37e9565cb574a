"""Bytes a parameter, by kind of precision and stage of ZeRO."""

from dlcourse.course.exercises import as_number, describe, expect

NAMES = ("bytes_a_parameter",)
CASES = ("one", "stage1", "stage2", "stage3")
NUM_RANKS = 1
WHERE = "kernel"


def check(bytes_a_parameter, rank, world_size):
    from dlcourse.formulas.states import state_bytes

    findings = []
    cases = {
        "one": [("float32", 0, 1), ("mixed", 0, 1), ("mixed", 0, 8)],
        "stage1": [("float32", 1, 4), ("mixed", 1, 4)],
        "stage2": [("float32", 2, 4), ("mixed", 2, 8)],
        "stage3": [("float32", 3, 4), ("mixed", 3, 64), ("mixed", 3, 1)],
    }
    for case, arguments in cases.items():
        for way, stage, ranks in arguments:
            answer = bytes_a_parameter(way, stage, ranks)
            got = as_number(answer)
            sizes = state_bytes(
                1,
                precision="master" if way == "mixed" else "float32",
                world_size=ranks,
                stage=stage,
            )
            want = sum(sizes.values())
            right = got is not None and abs(got - want) < 1e-6
            key = "off"
            if right or got is None:
                pass
            elif way == "mixed" and stage == 0 and got in (8, 12):
                key = "halved" if got == 8 else "masters"
            elif stage == 0 and ranks > 1 and got < want:
                key = "alone"
            elif abs(got - sum(sizes.values()) * ranks) < 1e-6 or got == 16:
                key = "whole"
            elif stage < 3 and abs(got - 16 / ranks) < 1e-6:
                key = "everything"
            values = {"way": way, "stage": stage, "ranks": ranks}
            shown = describe(answer) if got is None else f"{got:.4g}"
            values |= {"got": shown, "want": f"{want:.4g}"}
            findings.append(expect(case, right, key, **values))
            if not right:
                break
    return findings
