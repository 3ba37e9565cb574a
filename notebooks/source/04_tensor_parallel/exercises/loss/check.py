"""Cross-entropy of logits that are cut along the vocabulary."""

from dlcourse.course.exercises import (
    as_number,
    describe,
    entered,
    expect,
    expect_close,
    expect_own,
    expect_sent,
    measured,
    not_number,
)

NAMES = ("vocab_loss",)
CASES = ("value", "large", "padded", "gradient", "bytes", "own")
TIME_LIMIT = 30.0
LIBRARY = "dlcourse.parallel.tensor_vocabulary"


def check(vocab_loss, rank, world_size):
    import torch
    import torch.nn.functional as F

    findings = []
    jobs = (
        ("value", 64, 1.0, 64),
        ("large", 64, 300.0, 64),  # exp of them overflows
        ("padded", 62, 1.0, 64),
    )
    for case, vocab_size, scale, padded in jobs:
        random = torch.Generator().manual_seed(2)
        logits = (scale * torch.randn(24, vocab_size, generator=random)).requires_grad_()
        targets = torch.randint(vocab_size, (24,), generator=random)
        want = F.cross_entropy(logits, targets)
        want.backward()
        room = (0, padded - vocab_size)
        mine = F.pad(logits.detach(), room).chunk(world_size, dim=1)[rank].clone()
        wanted = F.pad(logits.grad, room).chunk(world_size, dim=1)[rank]
        with measured() as seen, entered(LIBRARY) as library:
            got = vocab_loss(mine, targets, vocab_size)
        findings.append(expect_own("own", library))
        if not (isinstance(got, tuple) and len(got) == 2):
            findings.append(expect(case, False, "not_two", got=describe(got)))
            continue
        value, gradient = as_number(got[0]), got[1]
        if value is None:
            findings.append(not_number(case, got[0]))
            continue
        atol = 1e-4 * max(1.0, want.item())
        if not abs(value - want.item()) <= atol:
            numbers = {"got": f"{value:.5g}", "want": f"{want.item():.5g}"}
            findings.append(
                expect(case, False, "overflow" if value != value else "value", **numbers)
            )
        else:
            findings.append(expect(case, True))
        close = expect_close("gradient", gradient, wanted, atol=1e-5)
        if not close["ok"] and close["key"] == "far":
            summed = expect_close("gradient", gradient, wanted * len(targets), atol=1e-3)
            if summed["ok"]:
                close = expect("gradient", False, "summed", tokens=len(targets))
        findings.append(close)
        share = 2 * (world_size - 1) / world_size
        bound = expect_sent("bytes", seen, minimum=share * 4 * 3 * len(targets), at_most=1.4)
        findings.append(bound)
    return findings
