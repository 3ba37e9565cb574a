"""Accumulation under DDP: one all-reduce a step, and clipping where it belongs."""

from dlcourse.course.exercises import expect, expect_sent, gathered, largest, measured

from ..common import TOLERANCE, judge_memory, micro_batches, small_gpt

NAMES = ("train_step",)
CASES = ("replicas", "same", "bytes", "memory", "tokens", "numbers")
NUM_RANKS = 3
TIME_LIMIT = 60.0

_LR, _LIMIT = 0.5, 0.5  # the first gradient is above the limit, a third of it is below


def check(train_step, rank, world_size):
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from dlcourse.training.accumulation import backward_by_tokens

    same = [[[8, 8]] * 3] * world_size
    tokens = [[[8 - 3 * r, 8], [2 + r, 0]] for r in range(world_size)]
    numbers = [[[8, 5]] * (3 - r) for r in range(world_size)]  # of micro-batches: 3, 2, 1
    findings = []
    for case, lengths in (("same", same), ("tokens", tokens), ("numbers", numbers)):
        steps = [
            [micro_batches(of_rank, seed=100 * step + r) for r, of_rank in enumerate(lengths)]
            for step in range(4)
        ]
        gpt = small_gpt(3)
        ddp = DistributedDataParallel(gpt)
        optimizer = torch.optim.SGD(gpt.parameters(), lr=_LR)
        for parts in steps[:3]:
            train_step(ddp, parts[rank], optimizer)
        with measured() as seen:
            train_step(ddp, steps[3][rank], optimizer)
        findings += _judge_training(case, gpt, steps)
        if case == "same":
            minimum = 2 * (world_size - 1) / world_size * 8 * (gpt.num_parameters() + 1)
            sent = expect_sent("bytes", seen, minimum=minimum, at_least=0.95, key="often")
            findings.append(sent)
            with measured() as allowed:
                backward_by_tokens(small_gpt(3), steps[3][rank])
            findings.append(judge_memory(seen, allowed))
            if not sent["ok"]:
                break  # ranks with different numbers of micro-batches would wait for ever
    return findings


def _judge_training(case, gpt, steps):
    import torch

    state, want = _flat(gpt), _trained_alone(steps)
    first = torch.tensor(gathered(state.tolist())[0], dtype=state.dtype)
    drift = largest((state - first).abs().max())  # the ranks tell the same
    apart = largest((state - want).abs().max())
    if drift > 0:
        return [expect("replicas", False, "drift", off=f"{drift:.2g}")]
    key = "right" if apart < TOLERANCE else _mistake(state, steps)
    off = f"{apart:.2g}"
    return [expect("replicas", True), expect(case, key == "right", key, off=off)]


def _mistake(state, steps):
    """Which of the usual mistakes gives these very parameters."""
    for mistake in ("own_targets", "mean_of_parts", "divided_twice", "not_clipped", "not_cleared"):
        if (state - _trained_alone(steps, mistake)).abs().max() < TOLERANCE:
            return mistake
    return "far_from_one"


def _trained_alone(steps, mistake=""):
    """Parameters after the same steps in one process, which has the micro-batches of all ranks."""
    import torch
    from torch import nn

    model = small_gpt(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR)
    for of_ranks in steps:
        if mistake != "not_cleared":
            optimizer.zero_grad()
        if mistake == "own_targets":
            loss = sum(_mean_loss(model, parts) for parts in of_ranks) / len(of_ranks)
        elif mistake == "mean_of_parts":
            means = [[_mean_loss(model, [part]) for part in parts] for parts in of_ranks]
            loss = sum(sum(mean) / len(mean) for mean in means) / len(of_ranks)
        else:
            loss = _mean_loss(model, [part for parts in of_ranks for part in parts])
        (loss / len(of_ranks) if mistake == "divided_twice" else loss).backward()
        if mistake != "not_clipped":
            nn.utils.clip_grad_norm_(model.parameters(), _LIMIT)
        optimizer.step()
    return _flat(model)


def _mean_loss(model, parts):
    import torch
    import torch.nn.functional as F

    x, y = (torch.cat(halves) for halves in zip(*parts, strict=True))
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def _flat(model):
    import torch

    return torch.cat([p.detach().flatten() for p in model.parameters()])
