"""A layer of experts without waste: equal to the loop, and not a multiplication more."""

from dlcourse.course.exercises import expect, expect_close, measured

NAMES = ("grouped",)
CASES = ("forward", "gradients", "empty", "multiplications", "products", "memory")
NUM_RANKS = 1

_N, _C, _F = 96, 16, 24
# float64: only the order of additions differs; a wrong answer is off by 0.01 at least
_TOLERANCE = 1e-9


def check(grouped, rank, world_size):
    findings = []
    for case, num_experts, top_k in (("forward", 4, 2), ("forward", 5, 1), ("empty", 8, 3)):
        given = _given(num_experts, top_k, empty=case == "empty")
        want, wanted = _gradients(_loop, given)
        with measured() as seen, _Products() as products:
            got = grouped(*given)
        finding = expect_close(case, got, want, atol=_TOLERANCE)
        findings.append(finding)
        if not finding["ok"]:
            continue
        findings += _judge_gradients(grouped, given, wanted)
        findings += _judge_cost(seen, products.count, given)
    return findings


def _judge_gradients(grouped, given, wanted):
    try:
        _, got = _gradients(grouped, given)
    except RuntimeError:  # nothing in the result knows where it comes from
        return [expect("gradients", False, "cut")]
    findings = []
    for name, one, other in zip(("x", "weights", "up", "down"), got, wanted, strict=True):
        if one is None:
            findings.append(expect("gradients", False, "none_for", name=name))
        else:
            findings.append(expect_close("gradients", one, other, atol=_TOLERANCE))
    return findings


def _judge_cost(seen, count, given):
    x_NC, experts_NK, _, up, _ = given
    num_experts, C, F = up.shape
    copies = experts_NK.numel()
    minimum = 2 * copies * 2 * C * F  # two products of a copy's row with a matrix
    ratio = seen.record["flops"] / minimum
    # A few more numbers than the input, the copies, inside, the results and their sum
    room = 8 * (2 * x_NC.numel() + 6 * copies * (C + F)) + 64 * copies
    peak = seen.record["memory"]["peaks"]
    kept = peak["activations"] + peak["other"]
    return [
        expect("multiplications", ratio < 1.01, "wasted", ratio=f"{ratio:.3g}"),
        expect("products", count <= 2 * num_experts, "many", got=count, most=2 * num_experts),
        expect("memory", kept <= 2 * room, "large", times=f"{kept / room:.2g}"),
    ]


def _loop(x_NC, experts_NK, weights_NK, up, down):
    import torch
    import torch.nn.functional as F

    rows = []
    for x_C, experts_K, weights_K in zip(x_NC, experts_NK, weights_NK, strict=True):
        said = [F.gelu(x_C @ up[e]) @ down[e] for e in experts_K]
        rows.append(sum(w * y for w, y in zip(weights_K, said, strict=True)))
    return torch.stack(rows)


def _given(num_experts, top_k, empty):
    import torch

    random = torch.Generator().manual_seed(num_experts)
    shapes = ((_N, _C), (num_experts, _C, _F), (num_experts, _F, _C))
    x, up, down = (torch.randn(s, generator=random, dtype=torch.float64) for s in shapes)
    scores = torch.randn(_N, num_experts, generator=random, dtype=torch.float64)
    if empty:  # the first, one in the middle and the last get nothing
        scores[:, [0, 4, -1]] = -100
    weights, experts = scores.softmax(-1).topk(top_k)
    return x, experts, weights, up, down


def _gradients(function, given):
    x, experts, weights, up, down = given
    leaves = [value.clone().requires_grad_() for value in (x, weights, up, down)]
    out = function(leaves[0], experts, *leaves[1:])
    out.square().sum().backward()
    return out.detach(), [leaf.grad for leaf in leaves]


def _Products():
    """Counts the products of matrices that are called."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "_grouped_mm"}

    class Count(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function._schema.name.removeprefix("aten::") in names
            return function(*args, **(kwargs or {}))

    return Count()
