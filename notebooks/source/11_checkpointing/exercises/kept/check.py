"""Bytes that forward leaves with checkpoints every k layers."""

from dlcourse.course.exercises import as_number, expect, not_number

NAMES = ("bytes_kept",)
CASES = ("none", "each", "groups", "rest")
NUM_RANKS = 1
WHERE = "kernel"


def check(bytes_kept, rank, world_size):
    findings = []
    cases = {
        "none": [(12, 64, 256, 0), (3, 10, 7, 0)],
        "each": [(12, 64, 256, 1)],
        "groups": [(12, 64, 256, 3), (36, 1280, 8192, 6)],
        "rest": [(12, 64, 256, 5), (7, 8, 9, 2)],
    }
    for case, sizes in cases.items():
        for layers, width, tokens, k in sizes:
            answer = bytes_kept(layers, width, tokens, k)
            got = as_number(answer)
            if got is None:
                findings.append(not_number(case, answer))
                break
            one = 4 * width * tokens
            want = layers * 16 * one if k == 0 else -(-layers // k) * one
            key = "off"
            if got * 4 == want:
                key = "values"
            elif k and got == want + min(k, layers) * 16 * one:
                key = "alive"
            elif k and got == (layers // k + layers % k * 16) * one:
                key = "rest"
            elif got * tokens == want:
                key = "tokens"
            finding = expect(case, got == want, key, got=f"{got:,.12g}", want=f"{want:,}", k=k)
            findings.append(finding)
            if not finding["ok"]:
                break
    return findings
