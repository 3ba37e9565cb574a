"""The gradient of a large batch from parts of it."""

from dlcourse.course.exercises import expect, expect_close, measured

from ..common import TOLERANCE, flat_gradient, judge_memory, micro_batches, small_gpt, times_wanted

NAMES = ("accumulate",)
CASES = ("gradient", "loss", "memory")
NUM_RANKS = 1


def check(accumulate, rank, world_size):
    import torch

    from dlcourse.training.accumulation import backward_equal

    findings = []
    for number in (4, 2):
        parts = micro_batches([[8] * 2] * number)
        wanted, model = small_gpt(), small_gpt()
        loss = wanted(*map(torch.cat, zip(*parts, strict=True)))
        loss.backward()
        with measured() as allowed:
            backward_equal(small_gpt(), parts)
        with measured() as seen:
            got = accumulate(model, parts)
        last = small_gpt()
        (last(*parts[-1]) / number).backward()
        findings.append(_judge_gradient(*map(flat_gradient, (model, wanted, last)), number))
        findings.append(expect_close("loss", got, loss.item(), atol=TOLERANCE))
        findings.append(judge_memory(seen, allowed))
    return findings


def _judge_gradient(got, want, last, number):
    """The gradient of all parts: off by a factor, or what the last part alone has left?"""
    if got is None:
        return expect("gradient", False, "no_gradient")
    off = (got - want).norm() / want.norm()
    factor = times_wanted(got, want)
    key = "off"
    if factor is not None:
        key = "not_divided" if abs(factor - number) < TOLERANCE else "scaled"
    elif (got - last).norm() < TOLERANCE * last.norm():
        key = "only_last"
    shown = {"off": f"{100 * off:.3g}%", "factor": f"{factor or 0:.3g}", "number": number}
    return expect("gradient", off < TOLERANCE, key, **shown)
