"""A block cut into columns and rows, with one all-reduce fewer for q, k and v."""

from dlcourse.course.exercises import expect, expect_close, expect_sent, largest, measured

NAMES = ("cut",)
CASES = ("loss", "gradients", "calls", "bytes")
TIME_LIMIT = 30.0


def check(cut, rank, world_size):
    import math

    import torch

    from dlcourse.models.gpt import GPT, GPTConfig

    config = GPTConfig(block_size=16, n_layer=4, n_head=4, n_embd=32)
    model, alone = GPT(config), GPT(config)
    for block in model.blocks:
        cut(block)
    tokens, targets = torch.randint(256, (2, 2, 16), generator=torch.Generator().manual_seed(1))
    want = alone(tokens, targets)
    want.backward()
    with measured() as seen:
        loss = model(tokens, targets)
        loss.backward()
    findings = [expect_close("loss", loss.item(), want.item(), atol=1e-5)]
    worst = (0.0, "")
    ours = dict(model.named_parameters())
    for name, parameter in alone.named_parameters():
        got = ours[name].grad if name in ours else None
        if got is None:
            findings.append(expect("gradients", False, "no_gradient", name=name))
            continue
        wanted = parameter.grad
        if got.shape != wanted.shape:
            dims = [d for d in range(wanted.dim()) if got.shape[d] != wanted.shape[d]]
            wanted = wanted.chunk(world_size, dims[0])[rank]
        off = (got - wanted).abs().max().item() / (wanted.abs().max().item() + 1e-12)
        worst = max(worst, (math.inf if math.isnan(off) else off, name))
    off, name = worst
    together = largest(off)  # the ranks tell the same
    findings.append(
        expect("gradients", together < 1e-3, "far_gradient", name=name, off=f"{off:.0%}")
    )
    calls = seen.calls("all_reduce")
    fewest = 4 * config.n_layer
    findings.append(expect("calls", calls == fewest, "calls_16", got=calls, want=fewest))
    stream = 4 * 2 * 16 * config.n_embd
    share = 2 * (world_size - 1) / world_size
    findings.append(expect_sent("bytes", seen, minimum=share * fewest * stream, at_least=0.95))
    return findings
