"""A row-parallel linear layer."""

from dlcourse.course.exercises import expect, expect_calls, expect_close, expect_sent, measured

NAMES = ("row_parallel",)
CASES = ("without_bias", "with_bias", "calls", "bytes")


def check(row_parallel, rank, world_size):
    import torch
    import torch.nn.functional as F

    findings = []
    for case, bias_size in (("without_bias", 0.0), ("with_bias", 3.0)):
        random = torch.Generator().manual_seed(5)
        x, weight = torch.randn(6, 12, generator=random), torch.randn(8, 12, generator=random)
        bias = bias_size * torch.randn(8, generator=random)
        mine = x.chunk(world_size, 1)[rank].clone(), weight.chunk(world_size, 1)[rank].clone()
        with measured() as seen:
            got = row_parallel(*mine, bias.clone())
        want = F.linear(x, weight, bias)
        found = expect_close(case, got, want, atol=1e-4)
        if not found["ok"] and found["key"] == "far":  # its type and shape are right
            if (got - want - (world_size - 1) * bias).abs().max() < 1e-4:
                found = expect(case, False, "bias_often", times=world_size)
            elif (got - F.linear(*mine, bias)).abs().max() < 1e-4:
                found = expect(case, False, "summand")
        findings.append(found)
        share = 2 * (world_size - 1) / world_size
        findings.append(expect_calls("calls", seen, "all_reduce", 1))
        findings.append(expect_sent("bytes", seen, minimum=share * want.nbytes, at_least=0.95))
    return findings
