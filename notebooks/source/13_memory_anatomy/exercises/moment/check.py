"""The higher of two moments of a step: the loss, and the optimizer's step."""

from dlcourse.course.exercises import as_number, expect, not_number

NAMES = ("peak",)
CASES = ("many", "few", "accumulated")
NUM_RANKS = 1
WHERE = "kernel"


def check(peak, rank, world_size):
    findings = []
    cases = {
        "many": [(4, 4, 8, 40, 1), (2, 2, 12, 30, 1)],
        "few": [(4, 4, 8, 1, 1), (10, 6, 20, 5, 1)],
        "accumulated": [(4, 4, 8, 40, 4), (4, 4, 8, 1, 2)],
    }
    for case, calls in cases.items():
        for parameters, gradients, state, activations, micro_batches in calls:
            answer = peak(parameters, gradients, state, activations, micro_batches)
            got = as_number(answer)
            if got is None:
                findings.append(not_number(case, answer))
                break
            both = gradients if micro_batches > 1 else 0
            want = parameters + state + max(activations + both, gradients)
            everything = parameters + gradients + state + activations
            key = "off"
            if got == everything:
                key = "sum"
            elif got == parameters + state + activations:
                key = "kept" if micro_batches > 1 else "optimizer"
            elif got == parameters + state + gradients:
                key = "loss"
            finding = expect(case, got == want, key, got=f"{got:g}", want=f"{want:g}")
            findings.append(finding)
            if not finding["ok"]:
                break
    return findings
