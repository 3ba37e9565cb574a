"""The exercises of lesson 04: a row-parallel layer, a gradient's norm, 16 all-reduces, a loss."""

from __future__ import annotations

from dlcourse.course.exercises import (
    Exercise,
    as_number,
    describe,
    expect,
    expect_calls,
    expect_close,
    expect_sent,
    largest,
    measured,
    not_number,
)

# --- 04.row -------------------------------------------------------------------------------------


def check_row(row_parallel, rank, world_size):
    import torch
    import torch.nn.functional as F

    findings = []
    for case, bias_size in (("without_bias", 0.0), ("with_bias", 3.0)):
        random = torch.Generator().manual_seed(5)
        x, weight = torch.randn(6, 12, generator=random), torch.randn(8, 12, generator=random)
        bias = bias_size * torch.randn(8, generator=random)
        mine = x.chunk(world_size, 1)[rank].clone(), weight.chunk(world_size, 1)[rank].clone()
        with measured() as seen:
            got = row_parallel(*mine, bias.clone())
        want = F.linear(x, weight, bias)
        found = expect_close(case, got, want, atol=1e-4)
        if not found["ok"] and found["key"] == "far":  # its type and shape are right
            if (got - want - (world_size - 1) * bias).abs().max() < 1e-4:
                found = expect(case, False, "bias_often", times=world_size)
            elif (got - F.linear(*mine, bias)).abs().max() < 1e-4:
                found = expect(case, False, "summand")
        findings.append(found)
        share = 2 * (world_size - 1) / world_size
        findings.append(expect_calls("calls", seen, "all_reduce", 1))
        findings.append(expect_sent("bytes", seen, minimum=share * want.nbytes))
    return findings


ROW = Exercise(
    id="04.row",
    names=("row_parallel",),
    checker=check_row,
    cases={
        "without_bias": {"ko": "편향이 0일 때", "en": "with a bias of zero"},
        "with_bias": {"ko": "편향이 있을 때", "en": "with a bias"},
        "calls": {"ko": "올리듀스 한 번", "en": "one all-reduce"},
        "bytes": {"ko": "출력 한 번만큼만 보내기", "en": "sends the output once, not more"},
    },
    messages={
        "bias_often": {
            "ko": "편향이 {times}번 더해졌습니다. 랭크마다 한 번씩 더한 뒤 합쳤나요?",
            "en": "the bias is in it {times} times: was it added in every rank before the sum?",
        },
        "summand": {
            "ko": "이 랭크의 몫일 뿐입니다. 아직 랭크끼리 더하지 않았습니다",
            "en": "this is one rank's summand only: the ranks have not added theirs yet",
        },
    },
    solution="""\
def row_parallel(x, weight, bias):
    y = x @ weight.T
    dist.all_reduce(y)
    return y + bias
""",
    wrong=(
        "def row_parallel(x, weight, bias):\n    y = F.linear(x, weight, bias)\n"
        "    dist.all_reduce(y)\n    return y\n",
        "def row_parallel(x, weight, bias):\n    return F.linear(x, weight, bias)\n",
        "def row_parallel(x, weight, bias):\n    y = x @ weight.T\n"
        "    parts = [torch.empty_like(y) for _ in range(world_size)]\n"
        "    dist.all_gather(parts, y)\n    return sum(parts) + bias\n",
        "def row_parallel(x, weight, bias):\n    y = x @ weight.T\n    dist.all_reduce(y)\n"
        "    return (y + bias) / world_size\n",
    ),
    hints={
        "ko": (
            "이 랭크의 열과 행만 곱하면 출력과 모양은 같지만 값은 더해질 몫 하나입니다.",
            "몫을 올리듀스로 더하세요. 편향은 합이 끝난 뒤 한 번만 더합니다.",
        ),
        "en": (
            "My columns of x times my part of the weight has the output's shape, but is only one "
            "of the summands.",
            "Add the summands by an all-reduce, and the bias once, after the sum.",
        ),
    },
)


# --- 04.norm ------------------------------------------------------------------------------------


def check_norm(gradient_norm, rank, world_size):
    import math

    import torch

    findings = []
    for case, sharded_size, whole_size in (("both", 1.0, 1.0), ("large", 0.1, 30.0)):
        random = torch.Generator().manual_seed(3)
        cut = [torch.randn(4 * world_size, 6, generator=random) * sharded_size for _ in range(3)]
        whole = [torch.randn(6, generator=random) * whole_size for _ in range(4)]
        mine = [g.chunk(world_size)[rank].clone() for g in cut]
        with measured() as seen:
            got = gradient_norm(mine, [g.clone() for g in whole])
        want = torch.cat([g.flatten() for g in (*cut, *whole)]).norm().item()
        answer, got = got, as_number(got)
        if got is None:
            findings.append(not_number(case, answer))
            continue
        often = sum(g.square().sum().item() for g in (*cut, *[w for w in whole] * world_size))
        alone = sum(g.square().sum().item() for g in (*mine, *whole))
        held = [[g.chunk(world_size)[r].flatten() for g in cut] for r in range(world_size)]
        added = sum(torch.cat(of).norm().item() for of in [*held, whole])
        ok = math.isclose(got, want, rel_tol=1e-5)
        key = "value"
        if math.isclose(got, math.sqrt(often), rel_tol=1e-5):
            key = "whole_often"
        elif math.isclose(got, math.sqrt(alone), rel_tol=1e-5):
            key = "own_only"
        elif not ok and math.isclose(got, added, rel_tol=1e-5):
            key = "norms_added"
        findings.append(
            expect(case, ok, key, got=f"{got:.5g}", want=f"{want:.5g}", times=world_size)
        )
        share = 2 * (world_size - 1) / world_size
        findings.append(expect_sent("bytes", seen, minimum=share * 4, at_most=2.0))
    return findings


NORM = Exercise(
    id="04.norm",
    names=("gradient_norm",),
    checker=check_norm,
    cases={
        "both": {"ko": "나뉜 것과 통째인 것", "en": "gradients in parts and whole ones"},
        "large": {"ko": "통째인 그래디언트가 클 때", "en": "where the whole ones are large"},
        "bytes": {"ko": "숫자 하나만 보내기", "en": "one number sent, not more"},
    },
    messages={
        "whole_often": {
            "ko": "{got}: 통째인 그래디언트를 {times}번 셌습니다. 맞는 값은 {want}입니다",
            "en": "{got} counts the whole gradients {times} times; it should be {want}",
        },
        "norms_added": {
            "ko": "{got}: 크기끼리 더했습니다. 제곱의 합을 더하고 제곱근은 마지막에 한 번만 "
            "구하세요. 맞는 값은 {want}입니다",
            "en": "{got} adds norms; add the squares, and take one root at the end. It should be "
            "{want}",
        },
        "own_only": {
            "ko": "{got}: 이 랭크가 가진 것만의 크기입니다. 맞는 값은 {want}입니다. 랭크마다 "
            "다르게 자르면 통째인 파라미터가 어긋납니다",
            "en": "{got} is the norm of what this rank holds; it should be {want}. Ranks that "
            "clip differently let their whole parameters drift apart",
        },
    },
    solution="""\
def gradient_norm(in_parts, whole):
    squares = sum(gradient.square().sum() for gradient in in_parts)
    dist.all_reduce(squares)
    return (squares + sum(gradient.square().sum() for gradient in whole)).sqrt()
""",
    wrong=(
        "def gradient_norm(in_parts, whole):\n"
        "    squares = sum(g.square().sum() for g in [*in_parts, *whole])\n"
        "    dist.all_reduce(squares)\n    return squares.sqrt()\n",
        "def gradient_norm(in_parts, whole):\n"
        "    return sum(g.square().sum() for g in [*in_parts, *whole]).sqrt()\n",
        "def gradient_norm(in_parts, whole):\n"
        "    norm = sum(g.square().sum() for g in in_parts).sqrt()\n    dist.all_reduce(norm)\n"
        "    return norm + sum(g.square().sum() for g in whole).sqrt()\n",
        "def gradient_norm(in_parts, whole):\n    squares = 0\n    for g in in_parts:\n"
        "        parts = [torch.empty_like(g) for _ in range(world_size)]\n"
        "        dist.all_gather(parts, g)\n"
        "        squares = squares + sum(p.square().sum() for p in parts)\n"
        "    return (squares + sum(g.square().sum() for g in whole)).sqrt()\n",
    ),
    hints={
        "ko": (
            "크기의 제곱은 더할 수 있지만 크기 자체는 더할 수 없습니다.",
            "나뉜 그래디언트의 제곱합은 올리듀스로 더하고, 통째인 것은 모두가 같은 값을 가졌으니 "
            "한 번만 더하세요.",
        ),
        "en": (
            "Squares of norms can be added; norms cannot.",
            "All-reduce the sum of squares of the parts. Whole gradients are the same in every "
            "rank: add theirs once, after it.",
        ),
    },
)


# --- 04.all_reduces -----------------------------------------------------------------------------


def check_all_reduces(cut, rank, world_size):
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
    findings.append(expect_sent("bytes", seen, minimum=share * fewest * stream))
    return findings


_CUT = """\
from dlcourse.parallel.tensor import ColumnParallelLinear, RowParallelLinear, copy_to


def cut(block):
    attention, mlp = block.attention, block.mlp
    attention.n_head //= world_size
    attention.q = ColumnParallelLinear(attention.q, enter=None)
    attention.k = ColumnParallelLinear(attention.k, enter=None)
    attention.v = ColumnParallelLinear(attention.v, enter=None)
    attention.register_forward_pre_hook(lambda module, args: (copy_to(args[0]),))
    attention.proj = RowParallelLinear(attention.proj)
    mlp.up, mlp.down = ColumnParallelLinear(mlp.up), RowParallelLinear(mlp.down)
"""
_HOOK = "    attention.register_forward_pre_hook(lambda module, args: (copy_to(args[0]),))\n"

ALL_REDUCES = Exercise(
    id="04.all_reduces",
    names=("cut",),
    checker=check_all_reduces,
    time_limit=30.0,
    cases={
        "loss": {"ko": "손실이 단일 프로세스와 같음", "en": "the loss is one process's"},
        "gradients": {"ko": "모든 그래디언트도 같음", "en": "and so are all gradients"},
        "calls": {"ko": "네 층에 올리듀스 16번", "en": "16 all-reduces for 4 layers"},
        "bytes": {"ko": "보낸 바이트", "en": "bytes sent"},
    },
    messages={
        "no_gradient": {
            "ko": "{name}: 그래디언트가 없습니다(None)",
            "en": "{name} has no gradient (None)",
        },
        "far_gradient": {
            "ko": "가장 많이 다른 것은 {name}입니다 ({off}). q, k, v 앞에서 x의 그래디언트를 모두 "
            "더했나요?",
            "en": "the largest error is in {name} ({off}): are the gradients of x summed for q, "
            "for k and for v?",
        },
        "calls_16": {
            "ko": "한 스텝에 올리듀스 {got}번. {want}번이면 됩니다",
            "en": "{got} all-reduces in a step, where {want} are enough",
        },
    },
    solution=_CUT,
    wrong=(
        _CUT.replace(_HOOK, "").replace(", enter=None", ""),  # 24: the stub
        _CUT.replace(_HOOK, ""),  # 12: nobody sums for attention
        # 16, and yet wrong: k and v are not summed
        _CUT.replace(_HOOK, "").replace("attention.q, enter=None", "attention.q"),
        _CUT.replace(", enter=None", ""),  # summed twice
    ),
    hints={
        "ko": (
            "ColumnParallelLinear는 저마다 입력의 그래디언트를 더합니다. q, k, v가 같은 x를 읽으니 "
            "세 번 더합니다.",
            "enter=None이면 더하지 않습니다. 그러면 x가 q, k, v로 갈라지기 전에 copy_to를 한 번 "
            "지나야 합니다.",
            "attention.register_forward_pre_hook(lambda module, args: (copy_to(args[0]),))",
        ),
        "en": (
            "Each ColumnParallelLinear sums the gradient of its input. q, k and v read the same "
            "x, so it is summed three times.",
            "With enter=None a layer sums nothing. Then x must pass copy_to once, before it goes "
            "to q, k and v.",
            "attention.register_forward_pre_hook(lambda module, args: (copy_to(args[0]),))",
        ),
    },
)


# --- 04.loss ------------------------------------------------------------------------------------


def check_loss(vocab_loss, rank, world_size):
    import torch
    import torch.nn.functional as F

    findings = []
    jobs = (
        ("value", 64, 1.0, 64),
        ("large", 64, 300.0, 64),  # exp of them overflows
        ("padded", 62, 1.0, 64),
    )
    for case, vocab_size, scale, padded in jobs:
        random = torch.Generator().manual_seed(2)
        logits = (scale * torch.randn(24, vocab_size, generator=random)).requires_grad_()
        targets = torch.randint(vocab_size, (24,), generator=random)
        want = F.cross_entropy(logits, targets)
        want.backward()
        room = (0, padded - vocab_size)
        mine = F.pad(logits.detach(), room).chunk(world_size, dim=1)[rank].clone()
        wanted = F.pad(logits.grad, room).chunk(world_size, dim=1)[rank]
        with measured() as seen:
            got = vocab_loss(mine, targets, vocab_size)
        if not (isinstance(got, tuple) and len(got) == 2):
            findings.append(expect(case, False, "not_two", got=describe(got)))
            continue
        value, gradient = as_number(got[0]), got[1]
        if value is None:
            findings.append(not_number(case, got[0]))
            continue
        atol = 1e-4 * max(1.0, want.item())
        if not abs(value - want.item()) <= atol:
            numbers = {"got": f"{value:.5g}", "want": f"{want.item():.5g}"}
            findings.append(
                expect(case, False, "overflow" if value != value else "value", **numbers)
            )
        else:
            findings.append(expect(case, True))
        close = expect_close("gradient", gradient, wanted, atol=1e-5)
        if not close["ok"] and close["key"] == "far":
            summed = expect_close("gradient", gradient, wanted * len(targets), atol=1e-3)
            if summed["ok"]:
                close = expect("gradient", False, "summed", tokens=len(targets))
        findings.append(close)
        share = 2 * (world_size - 1) / world_size
        bound = expect_sent("bytes", seen, minimum=share * 4 * 3 * len(targets), at_most=1.4)
        findings.append(bound)
    return findings


_LOSS = """\
def vocab_loss(logits, targets, vocab_size):
    width = logits.size(1)
    column = rank * width + torch.arange(width)
    logits = logits.masked_fill(column >= vocab_size, float("-inf"))
    largest = logits.max(dim=1).values
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    shifted = logits - largest[:, None]
    one_hot = (column == targets[:, None]).float()
    target = torch.where(one_hot > 0, shifted, 0).sum(dim=1)
    sums = torch.stack([shifted.exp().sum(dim=1), target])
    dist.all_reduce(sums)
    gradient = (shifted.exp() / sums[0][:, None] - one_hot) / len(targets)
    return (sums[0].log() - sums[1]).mean(), gradient
"""

LOSS = Exercise(
    id="04.loss",
    names=("vocab_loss",),
    checker=check_loss,
    time_limit=30.0,
    cases={
        "value": {"ko": "손실값", "en": "the loss"},
        "large": {"ko": "로짓이 클 때", "en": "with large logits"},
        "padded": {"ko": "어휘가 나누어떨어지지 않을 때", "en": "with a padded vocabulary"},
        "gradient": {"ko": "이 랭크 로짓의 그래디언트", "en": "gradient of this rank's logits"},
        "bytes": {"ko": "토큰마다 숫자 네 개 이하", "en": "at most 4 numbers a token"},
    },
    messages={
        "not_two": {
            "ko": "돌려준 값은 {got} 하나입니다. (손실, 그래디언트) 두 개를 돌려주세요",
            "en": "returned {got}: return two things, the loss and the gradient",
        },
        "summed": {
            "ko": "손실의 평균이 아니라 합의 그래디언트입니다. 토큰 수 {tokens}로 나누세요",
            "en": "it is the gradient of the sum of losses: for the mean divide by {tokens} tokens",
        },
        "overflow": {
            "ko": "nan입니다 (맞는 값 {want}). exp 앞에서 무엇을 빼야 할까요?",
            "en": "it is nan (should be {want}): what has to be subtracted before exp?",
        },
    },
    solution=_LOSS,
    wrong=(
        # Joins the logits: right, and V numbers a token
        "def vocab_loss(logits, targets, vocab_size):\n"
        "    parts = [torch.empty_like(logits) for _ in range(world_size)]\n"
        "    dist.all_gather(parts, logits)\n    whole = torch.cat(parts, 1).requires_grad_()\n"
        "    value = F.cross_entropy(whole[:, :vocab_size], targets)\n    value.backward()\n"
        "    return value.item(), whole.grad.chunk(world_size, 1)[rank].contiguous()\n",
        # Each rank subtracts a maximum of its own
        _LOSS.replace("    dist.all_reduce(largest, op=dist.ReduceOp.MAX)\n", ""),
        # No maximum at all
        _LOSS.replace("    shifted = logits - largest[:, None]\n", "    shifted = logits\n"),
        # Padding counts
        _LOSS.replace('    logits = logits.masked_fill(column >= vocab_size, float("-inf"))\n', ""),
        # Every rank gives a target's logit, whether it holds it or not
        _LOSS.replace(
            "    target = torch.where(one_hot > 0, shifted, 0).sum(dim=1)\n",
            "    target = shifted[torch.arange(len(targets)), targets % width]\n",
        ),
        # The gradient of the sum, not of the mean
        _LOSS.replace(" / len(targets)\n", "\n"),
    ),
    hints={
        "ko": (
            "손실은 log(Σ exp(z - m)) - (z_target - m)의 평균입니다. m은 모든 랭크의 최댓값이어야 "
            "합니다.",
            "올리듀스는 두 번입니다. 최댓값 하나(MAX), 그리고 exp의 합과 목표 로짓을 쌓아서 "
            "한 번(SUM). 목표를 갖지 않은 랭크는 0을 냅니다.",
            "그래디언트는 (softmax - one_hot) / N입니다. 덧붙인 열은 -inf로 가려 두세요.",
        ),
        "en": (
            "The loss is the mean of log(sum exp(z - m)) - (z_target - m), where m must be the "
            "largest over all ranks.",
            "Two all-reduces: the maximum (MAX); then the sum of exp and the target's logit, "
            "stacked (SUM). A rank that does not hold the target gives 0.",
            "The gradient is (softmax - one_hot) / N. Mask the padded columns by -inf.",
        ),
    },
)

EXERCISES = [ROW, NORM, ALL_REDUCES, LOSS]
