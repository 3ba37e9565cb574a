"""A training loop with three bugs: it must train as one process does."""

from dlcourse.course.exercises import expect, gathered, largest

NAMES = ("train_ranks",)
CASES = ("replicas", "large", "uneven", "several")
NUM_RANKS = 3
TIME_LIMIT = 30.0

LIMIT = 1.0  # of the gradient's norm, as in the exercise's loop


def check(train_ranks, rank, world_size):
    counts = [1 + 2 * r for r in range(world_size)]
    same = [4] * world_size
    # One step each; then several, in which one rank's loss goes up and the mean goes down
    large, uneven = [_rows(1, same, 20.0)], [_rows(2, counts, 0.1)]
    several = [_rows(7, same, 0.1, scale_of_last=1 + 0.3 * step) for step in range(6)]
    findings = []
    drift_at = None
    for steps in range(1, len(several) + 1):
        drift = _drift(_trained(train_ranks, several[:steps], rank))
        if drift > 1e-12:
            drift_at = (steps, drift)
            break
    values = {"step": drift_at[0], "off": f"{drift_at[1]:.2g}"} if drift_at else {}
    key = "start" if values.get("step") == 1 else "drift"
    findings.append(expect("replicas", drift_at is None, key, **values))
    for case, batches in (("large", large), ("uneven", uneven), ("several", several)):
        state = _trained(train_ranks, batches, rank)
        want = _alone(batches)
        apart = largest((state - want).abs().max())  # the ranks tell the same
        off = f"{apart:.2g}"
        findings.append(
            expect(case, apart < 1e-9, "far_from_one", off=off, counts=_counts(batches))
        )
    return findings


def _net():
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def _rows(seed, counts, size, scale_of_last=1.0):
    """One batch for each rank: lists of (x, y)."""
    import torch

    random = torch.Generator().manual_seed(seed)
    parts = []
    for rank, count in enumerate(counts):
        x = torch.randn(count, 3, generator=random, dtype=torch.float64)
        y = size * (x.sum(dim=1, keepdim=True) + 1)
        parts.append((x, y * (scale_of_last if rank == len(counts) - 1 else 1.0)))
    return parts


def _trained(train_ranks, batches, rank):
    """All parameters after the learner's loop, in one vector."""
    import torch

    model = _net()
    with torch.no_grad():
        for parameter in model.parameters():  # every rank starts elsewhere
            parameter += 0.01 * rank
    train_ranks(model, [parts[rank] for parts in batches], 0.1)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _alone(batches):
    """The same training in one process, with all ranks' rows in one batch."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for parts in batches:
        x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
        optimizer.step()
        scheduler.step(loss.item())
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _drift(state):
    import torch

    first = torch.tensor(gathered(state.tolist())[0], dtype=state.dtype)
    return largest((state - first).abs().max())


def _counts(batches):
    return ", ".join(str(len(y)) for _, y in batches[0])
