"""Micro-batches from batch, micro-batch and ranks; None where nothing whole is left."""

from dlcourse.course.exercises import as_number, describe, expect

NAMES = ("micro_batches",)
CASES = ("one", "ranks", "refused")
NUM_RANKS = 1
WHERE = "kernel"

_ONE = [(64, 16, 1), (64, 64, 1), (96, 8, 1)]
_RANKS = [(64, 16, 2), (64, 16, 4), (48, 4, 3), (1024, 2, 8)]
_REFUSED = [(64, 16, 3), (64, 48, 2), (64, 16, 8), (64, 24, 1), (60, 16, 2)]


def check(micro_batches, rank, world_size):
    findings = []
    for case, sizes in (("one", _ONE), ("ranks", _RANKS)):
        findings.append(_first_wrong(case, micro_batches, sizes))
    findings.append(expect("refused", True))
    for size in _REFUSED:
        answer = micro_batches(*size)
        if answer is not None:
            got, world = describe(answer), " x ".join(map(str, size[1:]))
            findings[-1] = expect("refused", False, "not_refused", got=got, batch=size[0], by=world)
            break
    return findings


def _first_wrong(case, micro_batches, sizes):
    for batch, micro_batch, ranks in sizes:
        answer = micro_batches(batch, micro_batch, ranks)
        got, want = as_number(answer), batch // (micro_batch * ranks)
        if got != want:
            key = "ranks_ignored" if got == batch // micro_batch else "other"
            values = {"batch": batch, "micro_batch": micro_batch, "ranks": ranks}
            return expect(case, False, key, got=describe(answer), want=want, **values)
    return expect(case, True)
