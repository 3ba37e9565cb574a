"""Where a rank stands on a mesh."""

from dlcourse.course.exercises import as_list, as_number, describe, expect

NAMES = ("place",)
CASES = ("form", "small", "flat", "large")
NUM_RANKS = 1
WHERE = "kernel"

# pipeline, tensor, and the ranks to ask for
_MESHES = {
    "small": (2, 2, range(8)),
    "flat": (1, 4, range(8)),
    "large": (8, 4, (0, 3, 4, 31, 32, 700, 1023)),
}


def check(place, rank, world_size):
    findings = []
    for case, (pipeline, tensor, ranks) in _MESHES.items():
        for asked in ranks:
            got = as_list(place(asked, pipeline, tensor))
            numbers = [as_number(value) for value in got] if got is not None else []
            usable = len(numbers) == 3 and None not in numbers
            findings.append(expect("form", usable, "form", got=describe(got)))
            if not usable:
                break
            data, rest = divmod(asked, pipeline * tensor)
            want = [data, *divmod(rest, tensor)]
            values = {
                "rank": str(asked),
                "sides": f"{pipeline} × {tensor}",
                "got": _text(numbers),
                "want": _text(want),
            }
            findings.append(expect(case, numbers == want, _looks_like(numbers, want), **values))
            if numbers != want:
                break
    return findings


def _looks_like(got, want):
    if got == want[::-1]:
        return "turned"
    if got == [want[0], want[2], want[1]]:
        return "swapped"
    return "wrong"


def _text(numbers):
    return f"({', '.join(f'{n:g}' for n in numbers)})"
