"""A bias that keeps experts busy alike, where every rank sees its own tokens."""

from dlcourse.course.exercises import expect, expect_sent, gathered, largest, measured

NAMES = ("update_bias",)
CASES = ("same", "balance", "moving", "finite", "bytes")
TIME_LIMIT = 40.0

_E, _K, _N, _STEPS, _LAST = 8, 2, 512, 120, 20
_TARGET = 1.2


def check(update_bias, rank, world_size):
    import torch

    findings = []
    for case, moving in (("balance", False), ("moving", True)):
        bias_E = torch.zeros(_E)
        counted = []
        for step in range(_STEPS):
            scores_NE = _scores(step, rank, turned=moving and step >= _STEPS // 2)
            counts_E = (scores_NE + bias_E).topk(_K).indices.flatten().bincount(minlength=_E)
            counted.append(counts_E.tolist())
            if step or moving:
                update_bias(bias_E, counts_E.clone())
                continue
            with measured() as seen:  # the first step: recording takes longer than the step
                update_bias(bias_E, counts_E.clone())
            minimum = 2 * (world_size - 1) / world_size * 8 * _E
            findings.append(expect_sent("bytes", seen, minimum=minimum, key="sent_more"))
        everywhere = torch.tensor(gathered(bias_E.tolist()))
        whole_SE = torch.tensor(gathered(counted)).sum(0)
        apart = largest((everywhere - everywhere[0]).abs().max())
        if not everywhere.isfinite().all():
            return [expect("finite", False, "not_finite")]
        findings.append(expect("finite", True))
        findings.append(expect("same", apart == 0, "apart", off=f"{apart:.2g}"))
        findings.append(_judge(case, whole_SE, everywhere[0]))
    return findings


def _judge(case, whole_SE, bias_E):
    """The busiest expert against the mean, over the last steps; or what went wrong."""
    ratio_S = whole_SE.amax(1) / whole_SE.float().mean(1)
    ratio = ratio_S[-_LAST:].mean().item()
    busiest_S = whole_SE[-_LAST:].argmax(1)
    changes = (busiest_S[1:] != busiest_S[:-1]).sum()
    key = "uneven"
    if not bias_E.any():
        key = "nothing_done"
    elif ratio > 1.02 * ratio_S[0]:
        key = "worse"
    elif changes > _LAST // 2:
        key = "swings"
    shown = {"ratio": f"{ratio:.3g}", "first": f"{ratio_S[0]:.3g}", "target": _TARGET}
    return expect(case, ratio <= _TARGET, key, last=_LAST, **shown)


def _scores(step, rank, turned):
    """Scores of this rank's tokens; the favourites are the same in all ranks, up to a little."""
    import torch

    favour_E = torch.tensor([1.2, 0.8, 0.4, 0.0, 0.0, -0.3, -0.6, -1.2])
    own_E = 0.3 * torch.randn(_E, generator=torch.Generator().manual_seed(rank))
    random = torch.Generator().manual_seed(1000 * step + rank)
    favour_E = favour_E.flip(0) if turned else favour_E
    return (favour_E + own_E + torch.randn(_N, _E, generator=random)).softmax(-1)
