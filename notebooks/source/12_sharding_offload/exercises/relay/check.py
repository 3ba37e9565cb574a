"""Forward and backward from rank to rank, and around to the rank that has the targets."""

from dlcourse.course.exercises import as_number, describe, expect, expect_sent, measured

NAMES = ("relay",)
CASES = ("loss", "gradients", "bytes")
NUM_RANKS = 3
TIME_LIMIT = 30.0


def check(relay, rank, world_size):
    import torch
    from torch import nn

    torch.manual_seed(5)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(world_size)]
    x = torch.randn(16, 8)
    own = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    own.load_state_dict(layers[rank].state_dict())
    with measured() as seen:
        loss = relay(own, x.clone() if rank == 0 else torch.zeros_like(x))
    y = x
    for layer in layers:
        y = layer(y)
    want = y.square().mean()
    want.backward()
    want = want.item() if rank == 0 else 0.0
    got = as_number(loss)
    right = got is not None and abs(got - want) < 1e-6
    grads = [p.grad for p in own.parameters()]
    missing = any(grad is None for grad in grads)
    close = not missing and all(
        torch.allclose(grad, p.grad, atol=1e-6)
        for grad, p in zip(grads, layers[rank].parameters(), strict=True)
    )
    return [
        expect(
            "loss",
            right,
            "loss_off",
            got=describe(loss if got is None else got),
            want=f"{want:.4f}",
        ),
        expect("gradients", close, "missing" if missing else "differs"),
        expect_sent("bytes", seen, minimum=2 * x.nbytes, at_least=0.95),
    ]
