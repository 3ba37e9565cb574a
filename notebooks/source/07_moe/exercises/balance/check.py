"""A bias that keeps experts busy alike, where every rank sees its own tokens."""

from dlcourse.course.exercises import describe, expect, expect_sent, gathered, largest, measured

NAMES = ("new_bias",)
CASES = ("answer", "same", "balance", "moving", "bytes")
TIME_LIMIT = 60.0

_E, _K, _N, _STEPS, _LAST = 8, 2, 512, 120, 20
_TARGET = 1.2


def check(new_bias, rank, world_size):
    import torch

    bias_E, bad, counted = torch.zeros(_E), None, []
    findings = []
    for step in range(_STEPS):
        scores_NE = _scores(step, rank, turned=step >= _STEPS // 2)
        counts_E = (scores_NE + bias_E).topk(_K).indices.flatten().bincount(minlength=_E)
        counted.append(counts_E.tolist())
        if step:
            answer = new_bias(bias_E.clone(), counts_E.clone())
        else:
            with measured() as seen:  # the first step alone: recording takes its time
                answer = new_bias(bias_E.clone(), counts_E.clone())
            minimum = 2 * (world_size - 1) / world_size * 8 * _E
            findings.append(expect_sent("bytes", seen, minimum=minimum, key="sent_more"))
        if not _is_bias(answer):
            bad = describe(answer)
            break
        bias_E = answer.detach().clone()
    bads = gathered(bad)
    if any(bads):
        return [expect("answer", False, "no_bias", got=next(filter(None, bads)), experts=_E)]
    everywhere = torch.tensor(gathered(bias_E.tolist()))
    whole_SE = torch.tensor(gathered(counted)).sum(0)
    apart = largest((everywhere - everywhere[0]).abs().max())
    findings.append(expect("answer", True))
    findings.append(expect("same", apart == 0, "apart", off=f"{apart:.2g}"))
    halves = zip(("balance", "moving"), whole_SE.chunk(2), strict=True)
    return findings + [_judge(case, half_SE, everywhere[0]) for case, half_SE in halves]


def _is_bias(answer):
    import torch

    if not isinstance(answer, torch.Tensor) or answer.layout != torch.strided:
        return False
    if answer.shape != (_E,) or answer.is_meta:
        return False
    return answer.is_floating_point() and bool(answer.isfinite().all())


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
