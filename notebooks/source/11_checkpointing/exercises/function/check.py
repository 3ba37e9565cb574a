"""A checkpoint of one's own, random numbers included."""

from dlcourse.course.exercises import entered, expect, expect_equal, expect_own, measured

NAMES = ("run_again",)
CASES = ("loss", "gradients", "random", "memory", "flops", "own")
NUM_RANKS = 1
TIME_LIMIT = 60.0

LAYERS = 8
LIBRARIES = ("torch.utils.checkpoint", "dlcourse.training.checkpointing")


def check(run_again, rank, world_size):
    import gc

    import torch
    from torch import nn

    def step(how):
        torch.manual_seed(2)
        layers = [
            nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Dropout(0.2), nn.Linear(128, 32))
            for _ in range(LAYERS)
        ]
        x = torch.randn(512, 32, requires_grad=True)
        gc.collect()
        with measured() as seen:
            y = x
            for layer in layers:
                y = how(layer, y)
            loss = y.square().mean()
            loss.backward()
        grads = [p.grad for layer in layers for p in layer.parameters()]
        peak = seen.record["memory"]["peaks"]["activations"] / x.nbytes
        return y.detach(), x.grad, grads, torch.rand(2), peak, seen.record["flops"]

    want, x_grad, grads, random, _, flops = step(lambda layer, x: layer(x))
    got_y, got_x, got, got_random, got_peak, got_flops = step(run_again)
    missing = got_x is None or any(g is None for g in got)
    same = not missing and torch.equal(got_x, x_grad) and all(map(torch.equal, got, grads))
    key = "missing" if missing else "dropout"
    result = expect_equal("loss", got_y, want)
    x = torch.randn(4, 32, requires_grad=True)
    with entered(*LIBRARIES) as libraries:
        run_again(torch.nn.Linear(32, 32), x).sum().backward()
    limit = LAYERS + 20  # inputs, one layer that is alive (9 of them), its backward
    return [
        expect("loss", False, "loss_differs") if result["key"] == "far" else result,
        expect("gradients", same, key),
        expect("random", torch.equal(got_random, random), "disturbed"),
        expect("memory", got_peak <= limit, "too_high", got=f"{got_peak:.0f}", want=limit),
        expect("flops", got_flops <= 1.34 * flops, "too_often", got=f"{got_flops / flops:.2f}"),
        expect_own("own", libraries),
    ]
