"""Parts that count as many tokens as they have."""

import math

from dlcourse.course.exercises import as_number, expect, expect_close, measured

from ..common import TOLERANCE, flat_gradient, judge_memory, micro_batches, small_gpt, times_wanted

NAMES = ("token_gradients",)
CASES = ("equal", "unequal", "rows", "empty", "loss", "memory")
NUM_RANKS = 1

_LENGTHS = {
    "equal": [[8], [8], [8]],
    "unequal": [[8, 8], [1, 2], [5, 3]],
    "rows": [[8, 8, 8], [2]],  # sizes differ as well
    "empty": [[8, 4], [0, 0], [3, 6]],
}


def check(token_gradients, rank, world_size):
    import torch
    import torch.nn.functional as F

    from dlcourse.training.accumulation import backward_by_tokens

    findings = []
    for case, lengths in _LENGTHS.items():
        parts = micro_batches(lengths, seed=1)
        wanted, means, model, reference = (small_gpt(2) for _ in range(4))
        x, y = map(torch.cat, zip(*parts, strict=True))
        loss = F.cross_entropy(wanted(x).flatten(0, 1), y.flatten())
        loss.backward()
        for x, y in parts:
            if (y >= 0).any():
                (means(x, y) / len(parts)).backward()
        with measured() as allowed:
            backward_by_tokens(reference, parts)
        with measured() as seen:
            got = token_gradients(model, parts)
        findings += _judge_tokens(
            case, flat_gradient(model), flat_gradient(wanted), flat_gradient(means)
        )
        if math.isnan(as_number(got) or 0.0):
            findings.append(expect("loss", False, "nan"))
        else:
            findings.append(expect_close("loss", got, loss.item(), atol=TOLERANCE))
        if case == "equal":
            findings.append(judge_memory(seen, allowed))
    return findings


def _judge_tokens(case, got, want, means):
    if got is None:
        return [expect(case, False, "no_gradient")]
    off = (got - want).norm() / want.norm()
    factor = times_wanted(got, want)
    key = "off" if factor is None else "scaled"
    if (got - means).norm() < TOLERANCE * means.norm():
        key = "mean_of_means"
    shown = {"off": f"{100 * off:.3g}%", "factor": f"{factor or 0:.3g}"}
    return [expect(case, off < TOLERANCE, key, **shown)]
