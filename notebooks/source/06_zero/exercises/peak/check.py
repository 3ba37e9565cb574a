"""A linear layer that gathers its weight and lets it go, twice."""

from dlcourse.course.exercises import expect, measured

NAMES = ("linear",)
CASES = ("loss", "gradient", "between", "peak")
TIME_LIMIT = 30.0

LAYERS, WIDTH, ROWS = 12, 128, 4
LAYERS_KEPT = 1.2  # activations take 0.4; each gathered weight takes 1
LAYERS_AT_ONCE = 6  # backward has a weight and two copies of its gradient at work
PATIENCE = 2.0  # seconds: Gloo's threads let go of a buffer a little later


def check(linear, rank, world_size):
    import gc
    import time

    import torch

    layer = 4 * WIDTH * WIDTH  # bytes
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(WIDTH, WIDTH, generator=random) / WIDTH**0.5 for _ in range(LAYERS)]
    inputs = torch.randn(world_size, ROWS, WIDTH, generator=random)
    shards = [w.flatten().chunk(world_size)[rank].clone().requires_grad_() for w in weights]
    alone = [w.clone().requires_grad_() for w in weights]
    losses = []
    for r in range(world_size):
        x = inputs[r]
        for weight in alone:
            x = torch.tanh(x @ weight.T)
        losses.append(x.square().mean())
    torch.stack(losses).mean().backward()
    wanted = [w.grad.flatten().chunk(world_size)[rank].clone() for w in alone]
    want_loss = losses[rank].item()
    del alone, losses, weights, x
    gc.collect()
    with measured() as seen:
        before, patient_until = seen.live(), time.monotonic() + PATIENCE
        x = inputs[rank].clone()
        for shard in shards:
            x = torch.tanh(linear(x, shard))
        loss = x.square().mean()
        while (kept := (seen.live() - before) / layer) > LAYERS_KEPT:
            if time.monotonic() > patient_until:
                break
            time.sleep(0.01)
        loss.backward()
    findings = [
        expect(
            "loss",
            abs(loss.item() - want_loss) < 1e-5,
            "value",
            got=f"{loss.item():.5g}",
            want=f"{want_loss:.5g}",
        )
    ]
    for number, (shard, want) in enumerate(zip(shards, wanted, strict=True)):
        got = shard.grad
        if got is None:
            findings.append(expect("gradient", False, "no_gradient", number=number))
            break
        allowed = 1e-5 * want.abs().max().item() + 1e-9
        off = (got - want).abs().max().item() if got.shape == want.shape else float("inf")
        if not off <= allowed:  # a NaN is neither
            times = next(
                (k for k in (world_size,) if (got - k * want).abs().max() < k * allowed), 0
            )
            findings.append(
                expect(
                    "gradient",
                    False,
                    "summed" if times else "far_off",
                    number=number,
                    off=f"{off:.2g}",
                )
            )
            break
    else:
        findings.append(expect("gradient", True))
    findings.append(
        expect("between", kept <= LAYERS_KEPT, "kept", got=f"{kept:.1f}", layers=LAYERS)
    )
    held = sum(s.nbytes for s in shards)
    above = (seen.peak() - 3 * held) / layer  # shards, their gradients, and the wanted ones
    findings.append(
        expect("peak", above <= LAYERS_AT_ONCE, "too_high", got=f"{above:.1f}", layers=LAYERS)
    )
    return findings
