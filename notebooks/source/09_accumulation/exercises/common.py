"""What several checks of lesson 09 share."""

from dlcourse.course.exercises import expect

TOLERANCE = 1e-6  # float64, but a learner's factors may be float32; wrong answers are off by 1e-3


def judge_memory(seen, allowed, case="memory"):
    got, want = (m.record["memory"]["peaks"]["activations"] for m in (seen, allowed))
    return expect(case, got <= 1.4 * want, "too_large", ratio=f"{got / want:.2g}")


def small_gpt(seed=0, dtype="float64"):
    import torch

    from dlcourse.models.gpt import GPT, GPTConfig

    config = GPTConfig(block_size=8, n_layer=1, n_head=2, n_embd=16, vocab_size=64)
    return GPT(config, seed=seed).to(getattr(torch, dtype))


def micro_batches(lengths, seed=0):
    """For each micro-batch the number of targets in each of its sequences; the rest is -100."""
    import torch

    random = torch.Generator().manual_seed(seed)
    parts = []
    for rows in lengths:
        x, y = torch.randint(64, (2, len(rows), 8), generator=random)
        for row, length in enumerate(rows):
            y[row, length:] = -100
        parts.append((x, y))
    return parts


def times_wanted(got, want):
    """By which factor a gradient is off, if by a factor it is; else None."""
    factor = (got @ want / (want @ want)).item()
    proportional = (got - factor * want).norm() < TOLERANCE * got.norm()
    return factor if proportional else None


def flat_gradient(model):
    import torch

    found = [p.grad for p in model.parameters()]
    return None if any(g is None for g in found) else torch.cat([g.flatten() for g in found])
