"""Bytes that offload moves in a step, each way."""

from dlcourse.course.exercises import as_number, expect

NAMES = ("moved",)
CASES = ("optimizer", "parameters")
NUM_RANKS = 1
WHERE = "kernel"


def check(moved, rank, world_size):
    findings = []
    for what in ("optimizer", "parameters"):
        for parameters, blocks in ((1000, 800), (7_000_000_000, 6_500_000_000), (10, 0)):
            got = moved(parameters, blocks, what)
            if not isinstance(got, tuple | list) or len(got) != 2:
                findings.append(expect(what, False, "pair"))
                break
            out, back = map(as_number, got)
            if out is None or back is None:
                findings.append(expect(what, False, "pair"))
                break
            again = blocks if what == "parameters" else 0
            want = 2 * parameters, 2 * (parameters + again)
            key = "off"
            if (2 * out, 2 * back) == want:
                key = "values"
            elif (out, back) == (2 * want[0], 2 * want[1]):
                key = "float32"
            elif again and (out, back) == (want[0], 4 * blocks):
                key = "left"
            elif out > want[0]:
                key = "out"
            elif (out, back) == (want[0], 2 * parameters):
                key = "twice"
            elif (out, back) == (want[0], 4 * parameters):
                key = "rest"
            shown = {"got": f"{out:,.12g}, {back:,.12g}", "want": f"{want[0]:,}, {want[1]:,}"}
            finding = expect(what, (out, back) == want, key, **shown, parameters=parameters)
            findings.append(finding)
            if not finding["ok"]:
                break
    return findings
