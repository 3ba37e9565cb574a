"""Gradients clipped by the norm of all shards."""

from dlcourse.course.exercises import (
    as_number,
    expect,
    expect_calls,
    expect_sent,
    measured,
    not_number,
)

NAMES = ("clip_shards",)
CASES = ("norm", "large", "small", "calls")
NUM_RANKS = 3


def check(clip_shards, rank, world_size):
    import math

    import torch
    from torch import nn

    findings = []
    for case, scale in (("large", 3.0), ("small", 0.01)):
        random = torch.Generator().manual_seed(5)
        # Rank 0 holds most of the norm
        rows = [scale * torch.randn(world_size * n, generator=random) for n in (4, 2)]
        for row in rows:
            row[: row.numel() // world_size] *= 5
        whole = [nn.Parameter(torch.zeros_like(row)) for row in rows]
        shards = []
        for parameter, row in zip(whole, rows, strict=True):
            parameter.grad = row.clone()
            mine = row.chunk(world_size)[rank].clone()
            shards.append(nn.Parameter(torch.zeros_like(mine)))
            shards[-1].grad = mine
        norm = nn.utils.clip_grad_norm_(whole, 1.0).item()
        with measured() as seen:
            got = clip_shards(shards, 1.0)
        answer, got = got, as_number(got)
        if got is None:
            findings.append(not_number("norm", answer))
            continue
        alone = float(torch.cat([row.chunk(world_size)[rank] for row in rows]).norm())
        key = "local" if abs(got - alone) < 1e-5 * alone else "off"
        if abs(got - norm / world_size**0.5) < 1e-5 * norm:
            key = "averaged"
        right = abs(got - norm) <= 1e-5 * norm
        findings.append(expect("norm", right, key, got=f"{got:.4g}", want=f"{norm:.4g}"))
        want = torch.cat([p.grad.chunk(world_size)[rank] for p in whole])
        have = [p.grad for p in shards if p.grad is not None]
        every = len(have) == len(shards)
        off = (torch.cat(have) - want).abs().max().item() if every else math.inf
        findings.append(expect(case, off <= 1e-5 * scale, "scaled", off=f"{off:.2g}"))
        if case == "large":
            share = 2 * (world_size - 1) / world_size
            findings.append(expect_calls("calls", seen, "all_reduce", 1))
            findings.append(expect_sent("calls", seen, minimum=share * 4, at_most=2.0))
    told = set()
    return [f for f in findings if f["ok"] or not (f["case"] in told or told.add(f["case"]))]
