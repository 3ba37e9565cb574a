"""Clipping between unscale and step."""

from dlcourse.course.exercises import as_number, expect, not_number

from ..common import first_failures

NAMES = ("clipped_step",)
CASES = ("torch", "ours", "skip")
NUM_RANKS = 1


def check(clipped_step, rank, world_size):
    import torch
    from torch import nn

    from dlcourse.training.mixed_precision.loss_scaler import LossScaler

    findings = []
    makers = {
        "torch": lambda: torch.amp.GradScaler("cpu", init_scale=1024.0),
        "ours": lambda: LossScaler(1024.0),
    }
    for case, make in makers.items():
        for factor, bad in ((3.0, False), (0.01, False), (1.0, True)):
            values = torch.tensor([1.0, -2.0, 2.0]) * factor
            weight = nn.Parameter(torch.zeros(3))
            optimizer, scaler = torch.optim.SGD([weight], lr=1.0), make()
            weight.grad = torch.full((3,), 77.0)  # left over from the step before
            scale = torch.tensor(float("inf") if bad else 1.0)
            norm = clipped_step((weight * values * scale).sum(), [weight], optimizer, scaler, 1.0)
            if bad:
                same = torch.equal(weight.detach(), torch.zeros(3))
                findings.append(expect("skip", same, "moved"))
                halved = scaler.get_scale() == 512.0
                findings.append(expect("skip", halved, "not_updated", got=scaler.get_scale()))
                continue
            true = values.norm().item()
            answer, norm = norm, as_number(norm)
            if norm is None:
                findings.append(not_number(case, answer))
                continue
            got, want = weight.detach(), -values * min(1.0, 1.0 / true)
            near = abs(norm - true) <= 1e-3 * true
            key = "scaled_norm" if abs(norm - 1024 * true) < true else "norm"
            if abs(norm - (values + 77 / 1024).norm().item()) < 1e-3:
                key = "leftover"
            findings.append(expect(case, near, key, got=f"{norm:.4g}", want=f"{true:.4g}"))
            length, wanted = got.norm().item(), want.norm().item()
            near = (got - want).norm().item() <= 1e-3 * wanted
            findings.append(expect(case, near, "length", got=f"{length:.3g}", want=f"{wanted:.3g}"))
    return first_failures(findings)
