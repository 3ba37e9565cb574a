"""The exercises of lesson 11: bytes kept, a placement, a policy, and a checkpoint of one's own."""

from __future__ import annotations

from dlcourse.course.exercises import (
    Exercise,
    as_number,
    describe,
    expect,
    expect_equal,
    measured,
    not_number,
)

# --- 11.kept ------------------------------------------------------------------------------------


def check_kept(bytes_kept, rank, world_size):
    findings = []
    cases = {
        "none": [(12, 64, 256, 0), (3, 10, 7, 0)],
        "each": [(12, 64, 256, 1)],
        "groups": [(12, 64, 256, 3), (36, 1280, 8192, 6)],
        "rest": [(12, 64, 256, 5), (7, 8, 9, 2)],
    }
    for case, sizes in cases.items():
        for layers, width, tokens, k in sizes:
            answer = bytes_kept(layers, width, tokens, k)
            got = as_number(answer)
            if got is None:
                findings.append(not_number(case, answer))
                break
            one = 4 * width * tokens
            want = layers * 16 * one if k == 0 else -(-layers // k) * one
            key = "off"
            if got * 4 == want:
                key = "values"
            elif k and got == want + min(k, layers) * 16 * one:
                key = "alive"
            elif k and got == (layers // k + layers % k * 16) * one:
                key = "rest"
            elif got * tokens == want:
                key = "tokens"
            finding = expect(case, got == want, key, got=f"{got:,.12g}", want=f"{want:,}", k=k)
            findings.append(finding)
            if not finding["ok"]:
                break
    return findings


_KEPT = """\
def bytes_kept(layers, width, tokens, k):
    one = 4 * width * tokens
    if k == 0:
        return layers * 16 * one
    return -(-layers // k) * one
"""

KEPT = Exercise(
    id="11.kept",
    names=("bytes_kept",),
    checker=check_kept,
    num_ranks=1,
    where="kernel",
    cases={
        "none": {"ko": "체크포인트 없음 (k=0)", "en": "no checkpoint (k=0)"},
        "each": {"ko": "층마다 (k=1)", "en": "each layer (k=1)"},
        "groups": {"ko": "k층마다", "en": "every k layers"},
        "rest": {"ko": "나누어떨어지지 않는 k", "en": "a k that does not divide the layers"},
    },
    messages={
        "off": {
            "ko": "k={k}일 때 {got}바이트가 나왔지만 {want}바이트여야 합니다",
            "en": "k={k} gave {got} bytes, should be {want}",
        },
        "values": {
            "ko": "바이트가 아니라 값의 개수입니다. float32는 4바이트입니다",
            "en": "these are values, not bytes: a float32 takes 4",
        },
        "alive": {
            "ko": "다시 계산하는 층은 역전파에서야 생깁니다. 순전파가 끝났을 때 남은 것만 세세요",
            "en": "recomputed layers come alive in backward only: count what forward leaves",
        },
        "rest": {
            "ko": "남은 층도 더 짧은 구간 하나로 묶습니다. 그 구간도 입력 하나만 저장합니다",
            "en": "layers left over make a shorter segment, which stores its input alone",
        },
        "tokens": {
            "ko": "토큰 하나의 바이트입니다. 값은 토큰마다 있습니다",
            "en": "these are the bytes of one token: every token has its values",
        },
    },
    solution=_KEPT,
    wrong=(
        _KEPT.replace("4 * width", "width"),
        _KEPT.replace("-(-layers // k)", "layers // k"),
        # What comes alive in backward counted as well
        _KEPT.replace("-(-layers // k) * one", "-(-layers // k) * one + k * 16 * one"),
        # Layers left over taken to store everything
        _KEPT.replace("-(-layers // k) * one", "(layers // k + layers % k * 16) * one"),
        _KEPT.replace("width * tokens", "width"),
        # A checkpoint taken for the layers in it
        _KEPT.replace("-(-layers // k) * one", "layers * 16 * one / k"),
    ),
    hints={
        "ko": (
            "층의 입력 하나는 width * tokens개의 값입니다.",
            "체크포인트가 있으면 구간마다 입력 하나만 남습니다. 구간은 몇 개인가요?",
            "구간의 수는 layers / k를 올림한 값입니다: -(-layers // k)",
        ),
        "en": (
            "The input of a layer is width * tokens values.",
            "With checkpoints one input is left for each segment. How many segments are there?",
            "The number of segments is layers / k, rounded up: -(-layers // k)",
        ),
    },
)


# --- 11.place -----------------------------------------------------------------------------------


def check_place(place, rank, world_size):
    import gc

    import torch
    from torch import nn

    from dlcourse.formulas.checkpoint_segments import every
    from dlcourse.training.checkpointing.segments import segmented

    def peak(n, cost, segments):
        def layer():
            return nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in costs))

        costs = range(cost)
        model = nn.Sequential(*segmented([layer() for _ in range(n)], segments))
        x = torch.ones(2048, 16, requires_grad=True)
        gc.collect()
        with measured() as seen:
            model(x).sum().backward()
        return seen.record["memory"]["peaks"]["activations"] / x.nbytes

    findings = []
    for case, n, cost in (
        ("square", 36, 1),
        ("rest", 30, 1),
        ("costly", 12, 12),
        ("middle", 32, 2),
    ):
        segments = place(n, cost)
        whole = isinstance(segments, list) and all(type(k) is int and k > 0 for k in segments)
        if not whole or sum(segments) > n:
            shown = describe(segments)
            findings.append(expect(case, False, "no_placement", got=shown, n=n))
            continue
        best = min(range(1, n + 1), key=lambda k: -(-n // k) + k * cost)
        target = 1.1 * peak(n, cost, every(n, best))
        got = peak(n, cost, segments)
        key = "sum" if sum(segments) < n - max(segments, default=0) else "too_high"
        values = {"got": f"{got:.1f}", "want": f"{target:.1f}", "longest": max(segments, default=0)}
        values |= {"count": len(segments)}
        missing = n - sum(segments)
        findings.append(expect(case, got <= target, key, **values, missing=missing, cost=cost))
    return findings


_PLACE = """\
def place(n, cost):
    k = max(1, round((n / cost) ** 0.5))
    return [min(k, n - start) for start in range(0, n, k)]
"""

PLACE = Exercise(
    id="11.place",
    names=("place",),
    checker=check_place,
    num_ranks=1,
    time_limit=60.0,
    cases={
        "square": {"ko": "36층, 입력의 1배", "en": "36 layers, each stores its input"},
        "rest": {"ko": "30층, 입력의 1배", "en": "30 layers, each stores its input"},
        "costly": {"ko": "12층, 입력의 12배", "en": "12 layers, each stores 12 times its input"},
        "middle": {"ko": "32층, 입력의 2배", "en": "32 layers, each stores twice its input"},
    },
    messages={
        "no_placement": {
            "ko": "{got}: 1 이상의 정수 리스트여야 하고 합이 {n} 이하여야 합니다",
            "en": "{got}: must be a list of whole numbers from 1 on that add up to {n} at most",
        },
        "too_high": {
            "ko": "최대 메모리가 입력의 {got}배이고 목표는 {want}배입니다. 구간 {count}개가 입력을 "
            "하나씩 저장하고, 가장 긴 구간은 {longest}층 × {cost}배가 한꺼번에 되살아납니다",
            "en": "the peak is {got} inputs, the target {want}: {count} segments store an input "
            "each, and the longest brings {longest} layers × {cost} inputs alive at once",
        },
        "sum": {
            "ko": "최대 메모리가 입력의 {got}배이고 목표는 {want}배입니다. 체크포인트 밖에 남은 층 "
            "{missing}개가 모두 저장됩니다",
            "en": "the peak is {got} inputs, the target {want}: {missing} layers are left outside "
            "and store everything",
        },
    },
    solution=_PLACE,
    wrong=(
        "def place(n, cost):\n    return [1] * n\n",
        "def place(n, cost):\n    return [n]\n",
        # The root, whatever a layer stores
        _PLACE.replace("(n / cost) ** 0.5", "n ** 0.5"),
        # The right length, but one segment only
        _PLACE.replace("return [min(k, n - start) for start in range(0, n, k)]", "return [k]"),
        # The last segment is too long
        _PLACE.replace(
            "return [min(k, n - start) for start in range(0, n, k)]",
            "return [k] * (-(-n // k)) + [1]",
        ),
    ),
    hints={
        "ko": (
            "구간의 길이가 k라면 입력 n/k개를 저장하고, 한 번에 k층이 되살아납니다.",
            "n/k + k * cost가 가장 작아지는 k를 찾으세요. 미분하면 제곱근이 나옵니다.",
            "k = sqrt(n / cost)를 반올림하되 1 이상으로. 마지막 구간은 남은 층만큼입니다.",
        ),
        "en": (
            "Segments of k layers store n/k inputs, and k layers come alive at a time.",
            "Which k makes n/k + k * cost smallest? Its derivative gives a root.",
            "Round k = sqrt(n / cost), at least 1; the last segment takes what is left.",
        ),
    },
)


# --- 11.policy ----------------------------------------------------------------------------------

MORE_FLOPS, LESS_MEMORY = 12, 50  # percent


def check_policy(policy, rank, world_size):
    import gc
    from functools import partial

    import torch
    from torch.utils.checkpoint import (
        CheckpointPolicy,
        checkpoint,
        create_selective_checkpoint_contexts,
    )

    from dlcourse.models.gpt import GPT, GPTConfig
    from dlcourse.training.checkpointing.segments import checkpoint_blocks

    config = GPTConfig(n_layer=8, n_embd=64, block_size=64)
    tokens = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(3))
    answers = set()

    def asked(ctx, op, *args, **kwargs):
        answer = policy(ctx, op, *args, **kwargs)
        answers.add(type(answer))
        return answer

    def step(segments):
        contexts = partial(create_selective_checkpoint_contexts, asked)
        how = partial(checkpoint, use_reentrant=False, context_fn=contexts)
        gpt = checkpoint_blocks(GPT(config), segments, how)
        gc.collect()
        with measured() as seen:
            gpt(tokens, tokens).backward()
        grads = [p.grad for p in gpt.parameters()]
        return seen.record["flops"], seen.record["memory"]["peaks"]["activations"], grads

    plain_flops, plain_peak, want = step([])
    flops, peak, got = step([1] * config.n_layer)
    kind = bool(answers) and answers <= {CheckpointPolicy}
    more, less = 100 * (flops / plain_flops - 1), 100 * peak / plain_peak
    same = None not in got and all(map(torch.equal, got, want))
    return [
        expect("answers", kind, "no_policy", got=", ".join(sorted(a.__name__ for a in answers))),
        expect("same", same, "differs"),
        expect("flops", more <= MORE_FLOPS, "flops_high", got=f"{more:.1f}", want=MORE_FLOPS),
        expect("memory", less <= LESS_MEMORY, "memory_high", got=f"{less:.0f}", want=LESS_MEMORY),
    ]


_POLICY = """\
from torch.utils.checkpoint import CheckpointPolicy


def policy(ctx, op, *args, **kwargs):
    if op == torch.ops.aten.mm.default or "scaled_dot_product" in str(op):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
"""

POLICY = Exercise(
    id="11.policy",
    names=("policy",),
    checker=check_policy,
    num_ranks=1,
    time_limit=60.0,
    cases={
        "answers": {
            "ko": "연산자마다 CheckpointPolicy를 돌려줌",
            "en": "a CheckpointPolicy for each operator",
        },
        "same": {"ko": "그래디언트가 비트까지 같음", "en": "gradients equal bit for bit"},
        "flops": {"ko": "FLOPs 증가 12% 이하", "en": "at most 12% more FLOPs"},
        "memory": {"ko": "활성화값 절반 이하", "en": "at most half of the activations"},
    },
    messages={
        "no_policy": {
            "ko": "돌려준 것: {got}. CheckpointPolicy.MUST_SAVE나 PREFER_RECOMPUTE를 돌려주세요",
            "en": "it returned {got}: return CheckpointPolicy.MUST_SAVE or PREFER_RECOMPUTE",
        },
        "differs": {"ko": "그래디언트가 다릅니다", "en": "gradients differ"},
        "flops_high": {
            "ko": "FLOPs가 {got}% 늘었습니다 (목표 {want}%). 어떤 행렬 곱을 다시 하고 있나요?",
            "en": "{got}% more FLOPs (target {want}%): which products run again?",
        },
        "memory_high": {
            "ko": "활성화값이 {got}% 남았습니다 (목표 {want}%). 결과가 가장 넓은 연산자는 "
            "무엇인가요?",
            "en": "{got}% of the activations are left (target {want}%): which operator has the "
            "widest result?",
        },
    },
    solution=_POLICY,
    wrong=(
        # All products: nothing runs again, and too much is kept
        _POLICY.replace(
            "op == torch.ops.aten.mm.default",
            "op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)",
        ),
        # Attention only
        _POLICY.replace("op == torch.ops.aten.mm.default or ", ""),
        # Nothing: plain checkpointing
        _POLICY.replace("MUST_SAVE", "PREFER_RECOMPUTE"),
        # The wide products kept, the narrow ones run again
        _POLICY.replace("aten.mm.default", "aten.addmm.default"),
    ),
    hints={
        "ko": (
            "q, k, v는 편향이 없어 aten.mm이고, proj, up, down은 편향이 있어 aten.addmm입니다.",
            "up의 결과는 입력의 네 배로 넓습니다. 다시 하면 FLOPs는 얼마나 늘까요? (down은 torch가 "
            "일찍 멈추므로 다시 하지 않습니다.)",
            "aten.mm과 어텐션(str(op)에 scaled_dot_product가 있음)만 MUST_SAVE로 하세요.",
        ),
        "en": (
            "q, k and v have no bias: aten.mm. proj, up and down have one: aten.addmm.",
            "The result of up is four times as wide as its input. What does running it again cost? "
            "(down does not run again: torch stops early.)",
            "MUST_SAVE for aten.mm and attention alone (scaled_dot_product is in str(op)).",
        ),
    },
)


# --- 11.function --------------------------------------------------------------------------------

LAYERS = 8


def check_function(run_again, rank, world_size):
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
    limit = LAYERS + 20  # inputs, one layer that is alive (9 of them), its backward
    return [
        expect("loss", False, "loss_differs") if result["key"] == "far" else result,
        expect("gradients", same, key),
        expect("random", torch.equal(got_random, random), "disturbed"),
        expect("memory", got_peak <= limit, "too_high", got=f"{got_peak:.0f}", want=limit),
        expect("flops", got_flops <= 1.34 * flops, "too_often", got=f"{got_flops / flops:.2f}"),
    ]


_FUNCTION = """\
class Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function, ctx.state = function, torch.get_rng_state()
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad(), torch.random.fork_rng():
            torch.set_rng_state(ctx.state)
            y = ctx.function(x)
        torch.autograd.backward(y, grad)
        return None, x.grad


def run_again(function, x):
    return Again.apply(function, x)
"""

FUNCTION = Exercise(
    id="11.function",
    names=("run_again",),
    checker=check_function,
    num_ranks=1,
    time_limit=60.0,
    cases={
        "loss": {"ko": "손실이 같음", "en": "the same loss"},
        "gradients": {"ko": "그래디언트가 비트까지 같음", "en": "gradients equal bit for bit"},
        "random": {
            "ko": "역전파 뒤에 뽑는 난수가 그대로임",
            "en": "random numbers after backward are as without",
        },
        "memory": {"ko": "층의 입력만 저장함", "en": "only inputs of layers are stored"},
        "flops": {"ko": "다시 계산은 한 번만", "en": "computed again once only"},
    },
    messages={
        "loss_differs": {
            "ko": "손실이 다릅니다. 첫 순전파는 function(x) 그대로여야 합니다",
            "en": "the loss differs: the first forward must be function(x) as it is",
        },
        "missing": {
            "ko": "그래디언트가 없는 파라미터가 있습니다. torch.autograd.backward는 "
            "파라미터의 .grad도 채웁니다",
            "en": "some parameter has no gradient: torch.autograd.backward fills those too",
        },
        "dropout": {
            "ko": "그래디언트가 다릅니다. 두 번째 순전파의 드롭아웃이 같은 값을 버렸나요?",
            "en": "gradients differ: did dropout drop the same values in the second forward?",
        },
        "disturbed": {
            "ko": "역전파 뒤의 난수가 달라졌습니다. 난수 상태를 되돌린 뒤 원래대로 돌려놓으세요",
            "en": "random numbers after backward are others: put the generator back afterwards",
        },
        "too_high": {
            "ko": "최대 메모리가 입력의 {got}배입니다 (목표 {want}배). 첫 순전파의 그래프가 "
            "남아 있나요?",
            "en": "the peak is {got} inputs (target {want}): is the first forward's graph alive?",
        },
        "too_often": {
            "ko": "FLOPs가 {got}배입니다. 순전파를 몇 번 다시 하나요?",
            "en": "{got} times the FLOPs: how often does forward run again?",
        },
    },
    solution=_FUNCTION,
    wrong=(
        "def run_again(function, x):\n    return function(x)\n",
        # Other random numbers
        _FUNCTION.replace("            torch.set_rng_state(ctx.state)\n", ""),
        # The generator is left where the second forward ended
        _FUNCTION.replace("torch.enable_grad(), torch.random.fork_rng()", "torch.enable_grad()"),
        # Gradients of the input alone
        _FUNCTION.replace(
            "        torch.autograd.backward(y, grad)\n        return None, x.grad\n",
            "        return None, torch.autograd.grad(y, x, grad)[0]\n",
        ),
        # The graph of the first forward is kept
        _FUNCTION.replace(
            "        return function(x)\n",
            "        with torch.enable_grad():\n"
            "            ctx.y = function(x.detach().requires_grad_())\n"
            "        return ctx.y.detach()\n",
        ),
    ),
    hints={
        "ko": (
            "torch.autograd.Function의 forward 안에서는 autograd가 기록하지 않습니다. "
            "ctx.save_for_backward로 x만 저장하세요.",
            "backward에서는 x.detach().requires_grad_()로 새 잎을 만들고 torch.enable_grad() "
            "안에서 function을 다시 부른 뒤 torch.autograd.backward(y, grad)를 하세요.",
            "forward에서 torch.get_rng_state()를 저장하고, backward에서는 "
            "torch.random.fork_rng() 안에서 torch.set_rng_state로 되돌리세요.",
        ),
        "en": (
            "In forward of a torch.autograd.Function nothing is recorded; save x alone by "
            "ctx.save_for_backward.",
            "In backward make a new leaf, x.detach().requires_grad_(), call function again inside "
            "torch.enable_grad(), then torch.autograd.backward(y, grad).",
            "Keep torch.get_rng_state() in forward; in backward set it inside "
            "torch.random.fork_rng().",
        ),
    },
)

EXERCISES = [KEPT, PLACE, POLICY, FUNCTION]
