"""The norm of gradients of which some are cut and some are whole."""

from dlcourse.course.exercises import as_number, expect, expect_sent, measured, not_number

NAMES = ("gradient_norm",)
CASES = ("both", "large", "bytes")


def check(gradient_norm, rank, world_size):
    import math

    import torch

    findings = []
    for case, sharded_size, whole_size in (("both", 1.0, 1.0), ("large", 0.1, 30.0)):
        random = torch.Generator().manual_seed(3)
        cut = [torch.randn(4 * world_size, 6, generator=random) * sharded_size for _ in range(3)]
        whole = [torch.randn(6, generator=random) * whole_size for _ in range(4)]
        mine = [g.chunk(world_size)[rank].clone() for g in cut]
        with measured() as seen:
            got = gradient_norm(mine, [g.clone() for g in whole])
        want = torch.cat([g.flatten() for g in (*cut, *whole)]).norm().item()
        answer, got = got, as_number(got)
        if got is None:
            findings.append(not_number(case, answer))
            continue
        often = sum(g.square().sum().item() for g in (*cut, *[w for w in whole] * world_size))
        alone = sum(g.square().sum().item() for g in (*mine, *whole))
        held = [[g.chunk(world_size)[r].flatten() for g in cut] for r in range(world_size)]
        added = sum(torch.cat(of).norm().item() for of in [*held, whole])
        ok = math.isclose(got, want, rel_tol=1e-5)
        key = "value"
        if math.isclose(got, math.sqrt(often), rel_tol=1e-5):
            key = "whole_often"
        elif math.isclose(got, math.sqrt(alone), rel_tol=1e-5):
            key = "own_only"
        elif not ok and math.isclose(got, added, rel_tol=1e-5):
            key = "norms_added"
        findings.append(
            expect(case, ok, key, got=f"{got:.5g}", want=f"{want:.5g}", times=world_size)
        )
        share = 2 * (world_size - 1) / world_size
        findings.append(expect_sent("bytes", seen, minimum=share * 4, at_most=2.0))
    return findings
