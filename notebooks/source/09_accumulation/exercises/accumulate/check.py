"""The gradient of a large batch from parts of it."""

from dlcourse.course.exercises import expect, expect_close, measured

from ..common import TOLERANCE, flat_gradient, judge_memory, micro_batches, small_gpt

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
        findings += _judge_gradient(model, wanted, number=number)
        findings.append(expect_close("loss", got, loss.item(), atol=TOLERANCE))
        findings.append(judge_memory(seen, allowed))
    return findings


def _judge_gradient(model, wanted, *, number=0):
    """The gradient of all parts; says by which factor it is off, where it is off by one."""
    got, want = flat_gradient(model), flat_gradient(wanted)
    if got is None:
        return [expect("gradient", False, "no_gradient")]
    off = (got - want).norm() / want.norm()
    factor = (got @ want / (want @ want)).item()
    scaled = abs(factor - number) < 1e-6 and (got - number * want).norm() < 1e-6 * got.norm()
    key = "not_divided" if number and scaled else "off"
    return [expect("gradient", off < TOLERANCE, key, off=f"{100 * off:.3g}%", number=number)]
