"""One cast of x for three projections."""

from contextlib import nullcontext

from dlcourse.course.exercises import expect

from ..common import first_failures

NAMES = ("project",)
CASES = ("bfloat16", "float32", "gradients", "memory")
NUM_RANKS = 1

ROWS, WIDTH, OUT = 512, 64, 16


def check(project, rank, world_size):
    import torch
    import torch.nn.functional as F
    from torch import nn

    random = torch.Generator().manual_seed(3)
    numbers = torch.randn(ROWS, WIDTH, generator=random)
    weights = [torch.randn(OUT, WIDTH, generator=random) for _ in range(3)]

    def run(function, autocast):
        x = numbers.clone().requires_grad_()
        matrices = [nn.Parameter(w.clone()) for w in weights]
        saved = []  # what autograd keeps; held, so that no address is used twice

        def keep(tensor):
            saved.append(tensor)
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, autocast():
            results = function(x * 1, *matrices)
        storages = [y.untyped_storage() for y in saved if y.numel() == numbers.numel()]
        kept = {storage.data_ptr(): storage.nbytes() for storage in storages}
        if not isinstance(results, list | tuple) or len(results) != 3:
            return None
        if not all(isinstance(y, torch.Tensor) and y.device == x.device for y in results):
            return None
        sum((i + 1) * y.float().square().mean() for i, y in enumerate(results)).backward()
        grads = [x.grad, *(w.grad for w in matrices)]
        return results, grads, sum(kept.values())

    def three(x, q, k, v):
        return [F.linear(x, w) for w in (q, k, v)]

    findings = []
    for case, autocast in (
        ("bfloat16", lambda: torch.autocast("cpu", torch.bfloat16)),
        ("float32", nullcontext),
    ):
        want, got = run(three, autocast), run(project, autocast)
        if got is None:
            findings.append(expect(case, False, "not_three"))
            continue
        types = [str(y.dtype)[6:] for y in got[0]]
        right = [str(y.dtype)[6:] for y in want[0]]
        findings.append(expect(case, types == right, "types", got=str(types), want=right[0]))
        for n, (y, z) in enumerate(zip(got[0], want[0], strict=True)):
            far = (y.float() - z.float()).abs().max().item() if y.shape == z.shape else 9.0
            findings.append(expect(case, far <= 0.02, "result", which="qkv"[n]))
        for name, g, w in zip(("x", "q", "k", "v"), got[1], want[1], strict=True):
            if g is None:
                findings.append(expect("gradients", False, "no_gradient", which=name))
                continue
            off = ((g - w).norm() / w.norm()).item()
            findings.append(
                expect("gradients", off < 0.02, "gradient", which=name, off=f"{off:.0%}")
            )
        if case == "bfloat16":
            copies = got[2] / (2 * numbers.numel())
            findings.append(expect("memory", copies <= 1, "copies", got=f"{copies:.3g}"))
    return first_failures(findings)
