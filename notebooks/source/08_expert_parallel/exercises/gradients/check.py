"""Gradients of what all ranks have and of experts that some have, after backward."""

from dlcourse.course.exercises import expect, largest, measured

NAMES = ("sync_gradients",)
CASES = ("dense", "experts", "alone", "everywhere", "unused", "bytes")

_E, _C, _F, _N = 8, 12, 32, 10
_TOLERANCE = 1e-9  # of float64; a wrong factor is off by the gradient itself


def check(sync_gradients, rank, world_size):
    import torch.distributed as dist

    findings = []
    # case: ranks over which the experts are spread; the others have copies
    for case, spread in {"experts": 2, "unused": 2, "alone": 4, "everywhere": 1}.items():
        groups = [dist.new_group(range(r, world_size, spread)) for r in range(spread)]
        job = _Job(rank, world_size, spread, unused=case == "unused")
        with measured() as seen:
            sync_gradients(job.dense, job.experts, groups[rank % spread])
        findings.append(_judge("dense", job.dense, job.wanted_dense, {}))
        known = {
            "by_group": world_size / len(range(0, world_size, spread)),
            "not_divided": float(world_size),
            "divided_twice": len(range(0, world_size, spread)) / world_size,
        }
        findings.append(_judge(case, job.experts, job.wanted_experts, known))
        copies = world_size // spread
        bytes_of = [sum(p.nbytes for p in job.dense), sum(p.nbytes for p in job.experts)]
        minimum = sum(
            2 * (p - 1) / p * nbytes
            for p, nbytes in zip((world_size, copies), bytes_of, strict=True)
        )
        times = seen.sent() / minimum
        findings.append(expect("bytes", times <= 1.05, "often", times=f"{times:.3g}"))
    return findings


class _Job:
    """Parameters of one rank with the gradients that its backward has left, and those wanted."""

    def __init__(self, rank, world_size, spread, unused):
        import torch
        from torch import nn

        here = _E // spread
        first = here * (rank % spread)
        names = [n for n, _ in _moe().experts.named_parameters()]
        own, of_group, of_all = _moe(), _moe(), _moe()
        team = [r for r in range(world_size) if r // spread == rank // spread]
        # In the last team nobody uses the last expert
        closed = {r: unused and r // spread == world_size // spread - 1 for r in range(world_size)}
        _loss(own, rank, closed[rank]).backward()
        sum(_loss(of_group, r, closed[r]) for r in team).backward()
        (sum(_loss(of_all, r, closed[r]) for r in range(world_size)) / world_size).backward()
        self.dense, self.wanted_dense = [own.router.weight], [of_all.router.weight.grad]
        self.experts, self.wanted_experts = [], []
        for e in range(first, first + here):
            for name in names:
                whole = getattr(of_group.experts, name)
                parameter = nn.Parameter(whole[e].detach().clone())
                if of_group.counts[e]:
                    parameter.grad = whole.grad[e].clone()
                self.experts.append(parameter)
                self.wanted_experts.append(getattr(of_all.experts, name).grad[e])
        assert all(torch.isfinite(w).all() for w in self.wanted_experts)


def _moe():
    import torch
    from torch import nn

    from dlcourse.models.moe import MoE

    torch.manual_seed(0)
    moe = MoE(_C, num_experts=_E, top_k=2, hidden=_F).double()
    for parameter in moe.parameters():
        nn.init.normal_(parameter, std=0.3)
    moe.counts = torch.zeros(_E, dtype=torch.int64)
    return moe


def _loss(moe, rank, closed):
    """The mean over the rank's own tokens."""
    import torch

    random = torch.Generator().manual_seed(100 + rank)
    x, y = torch.randn(2, _N + 4 * rank, _C, generator=random, dtype=torch.float64)
    moe.router.bias_E.zero_()
    if closed:
        moe.router.bias_E[-1] = -100.0
    loss = (moe(x) - y).square().mean()
    moe.counts += moe.counts_E
    return loss


def _judge(case, parameters, wanted, known):
    import torch

    off, factors = 0.0, []
    for parameter, want in zip(parameters, wanted, strict=True):
        got = torch.zeros_like(want) if parameter.grad is None else parameter.grad
        if got.shape != want.shape:
            return expect(case, False, "off", off="∞")
        apart = (got - want).abs().max().item()
        off = max(off, apart) if apart == apart else float("inf")  # NaN is not lost
        if want.norm() > 1e-6:
            factors.append((got.flatten() @ want.flatten() / want.norm() ** 2).item())
    off = largest(off)
    if off < _TOLERANCE:
        return expect(case, True)
    same = factors and max(factors) - min(factors) < 1e-6
    for key, factor in known.items() if same else ():
        if factor != 1 and abs(factors[0] - factor) < 1e-6:
            return expect(case, False, key, factor=f"{factor:g}")
    return expect(case, False, "off", off=f"{off:.2g}")
