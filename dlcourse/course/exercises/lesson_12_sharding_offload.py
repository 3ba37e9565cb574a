"""The exercises of lesson 12: bytes moved, a relay, gradients that leave, a balanced cut."""

from __future__ import annotations

from dlcourse.course.exercises import (
    Exercise,
    as_number,
    describe,
    expect,
    expect_sent,
    measured,
)

# --- 12.moved -----------------------------------------------------------------------------------


def check_moved(moved, rank, world_size):
    findings = []
    for what in ("optimizer", "parameters"):
        for parameters, blocks in ((1000, 800), (7_000_000_000, 6_500_000_000), (10, 0)):
            got = moved(parameters, blocks, what)
            if not isinstance(got, tuple | list) or len(got) != 2:
                findings.append(expect(what, False, "pair"))
                break
            out, back = map(as_number, got)
            if out is None or back is None:
                findings.append(expect(what, False, "pair"))
                break
            again = blocks if what == "parameters" else 0
            want = 2 * parameters, 2 * (parameters + again)
            key = "off"
            if (2 * out, 2 * back) == want:
                key = "values"
            elif (out, back) == (2 * want[0], 2 * want[1]):
                key = "float32"
            elif again and (out, back) == (want[0], 4 * blocks):
                key = "left"
            elif out > want[0]:
                key = "out"
            elif (out, back) == (want[0], 2 * parameters):
                key = "twice"
            elif (out, back) == (want[0], 4 * parameters):
                key = "rest"
            shown = {"got": f"{out:,.12g}, {back:,.12g}", "want": f"{want[0]:,}, {want[1]:,}"}
            finding = expect(what, (out, back) == want, key, **shown, parameters=parameters)
            findings.append(finding)
            if not finding["ok"]:
                break
    return findings


_MOVED = """\
def moved(parameters, blocks, what):
    back = parameters + (blocks if what == "parameters" else 0)
    return 2 * parameters, 2 * back
"""

MOVED = Exercise(
    id="12.moved",
    names=("moved",),
    checker=check_moved,
    num_ranks=1,
    where="kernel",
    cases={
        "optimizer": {"ko": "옵티마이저 오프로드", "en": "optimizer offload"},
        "parameters": {"ko": "파라미터 오프로드", "en": "parameter offload"},
    },
    messages={
        "pair": {
            "ko": "나간 바이트와 돌아온 바이트 두 개를 돌려주세요",
            "en": "return two numbers: bytes out and bytes back",
        },
        "off": {
            "ko": "파라미터 {parameters}개에서 {got}이 나왔지만 {want}이어야 합니다",
            "en": "{parameters} parameters gave {got}, should be {want}",
        },
        "values": {
            "ko": "바이트가 아니라 값의 개수입니다. 16비트는 2바이트입니다",
            "en": "these are values, not bytes: 16 bits are 2",
        },
        "float32": {
            "ko": "4바이트로 셌습니다. 오가는 값은 16비트입니다",
            "en": "counted with 4 bytes: what travels has 16 bits",
        },
        "out": {
            "ko": "나가는 것은 그래디언트뿐입니다. Adam의 상태는 호스트를 떠나지 않습니다",
            "en": "only gradients go out: Adam's state never leaves the host",
        },
        "twice": {
            "ko": "블록의 파라미터는 순전파와 역전파에서 한 번씩, 두 번 가져옵니다",
            "en": "a block's parameters are fetched twice: in forward and in backward",
        },
        "left": {
            "ko": "블록에 들지 않는 나머지도 갱신되어 한 번 돌아옵니다",
            "en": "what is in no block is updated as well, and comes back once",
        },
        "rest": {
            "ko": "블록에 들지 않는 나머지는 장치에 남으므로 한 번만 돌아옵니다",
            "en": "what is in no block stays on the device and comes back once only",
        },
    },
    solution=_MOVED,
    wrong=(
        _MOVED.replace("2 * ", ""),
        _MOVED.replace("2 * ", "4 * "),
        # Master copy and moments sent along
        _MOVED.replace("return 2 * parameters", "return 14 * parameters"),
        # What is in no block forgotten
        _MOVED.replace(
            'parameters + (blocks if what == "parameters" else 0)',
            '2 * blocks if what == "parameters" else parameters',
        ),
        # Fetched once only
        _MOVED.replace('(blocks if what == "parameters" else 0)', "0"),
        # Everything twice
        _MOVED.replace("(blocks if", "(parameters if"),
    ),
    hints={
        "ko": (
            "나가는 것은 무엇이고, 호스트를 떠나지 않는 것은 무엇인가요?",
            "파라미터 오프로드에서는 블록을 순전파와 역전파에서 한 번씩 가져옵니다.",
            "out = 2 * parameters, back은 2 * parameters에 2 * blocks를 더한 값입니다.",
        ),
        "en": (
            "What goes out, and what never leaves the host?",
            "With parameter offload a block is fetched in forward and in backward.",
            "out = 2 * parameters; back is 2 * parameters, and 2 * blocks on top.",
        ),
    },
)


# --- 12.relay -----------------------------------------------------------------------------------


def check_relay(relay, rank, world_size):
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
    want = want.item() if rank == world_size - 1 else 0.0
    got = as_number(loss)
    right = got is not None and abs(got - want) < 1e-6
    grads = [p.grad for p in own.parameters()]
    missing = any(grad is None for grad in grads)
    close = not missing and all(
        torch.allclose(grad, p.grad, atol=1e-6)
        for grad, p in zip(grads, layers[rank].parameters(), strict=True)
    )
    least = x.nbytes * ((rank < world_size - 1) + (rank > 0))
    return [
        expect(
            "loss",
            right,
            "loss_off",
            got=describe(loss if got is None else got),
            want=f"{want:.4f}",
        ),
        expect("gradients", close, "missing" if missing else "differs"),
        expect_sent("bytes", seen, minimum=least),
    ]


_RELAY = """\
def relay(layer, x):
    last = rank == world_size - 1
    if rank > 0:
        x = torch.empty_like(x)
        dist.recv(x, rank - 1)
        x.requires_grad_()
    y = layer(x)
    loss = 0.0
    if last:
        loss = y.square().mean()
        loss.backward()
    else:
        dist.send(y.detach(), rank + 1)
        grad = torch.empty_like(y)
        dist.recv(grad, rank + 1)
        y.backward(grad)
    if rank > 0:
        dist.send(x.grad, rank - 1)
    return loss
"""

RELAY = Exercise(
    id="12.relay",
    names=("relay",),
    checker=check_relay,
    num_ranks=3,
    time_limit=30.0,
    cases={
        "loss": {"ko": "마지막 랭크의 손실, 나머지는 0.0", "en": "loss in the last rank, else 0.0"},
        "gradients": {"ko": "단일 프로세스와 같은 그래디언트", "en": "gradients of one process"},
        "bytes": {"ko": "필요한 바이트만", "en": "no byte more than needed"},
    },
    messages={
        "loss_off": {
            "ko": "{got}이 나왔지만 {want}여야 합니다",
            "en": "is {got}, should be {want}",
        },
        "missing": {
            "ko": "그래디언트가 없습니다. 역전파가 이 랭크까지 오지 않았습니다",
            "en": "no gradients: backward has not reached this rank",
        },
        "differs": {
            "ko": "그래디언트가 다릅니다. 뒤 랭크에서 온 그래디언트로 backward를 불렀나요?",
            "en": "gradients differ: was backward called with the gradient from the rank behind?",
        },
    },
    solution=_RELAY,
    wrong=(
        # Forward only: the ranks before the last learn nothing
        """\
def relay(layer, x):
    if rank > 0:
        dist.recv(x, rank - 1)
    y = layer(x)
    if rank < world_size - 1:
        dist.send(y.detach(), rank + 1)
        return 0.0
    loss = y.square().mean()
    loss.backward()
    return loss
""",
        # Each rank's own result taken for the loss
        _RELAY.replace("y.backward(grad)", "y.square().mean().backward()"),
        # Ones in place of the gradient that has arrived
        _RELAY.replace("y.backward(grad)", "y.backward(torch.ones_like(y))"),
        # Everybody gets everything
        _RELAY.replace(
            "    return loss", "    dist.all_reduce(torch.zeros(64, 8))\n    return loss"
        ),
        # The loss of the last rank is returned detached from its backward: no loss elsewhere
        _RELAY.replace("    loss = 0.0\n", "    loss = y.square().mean()\n"),
    ),
    hints={
        "ko": (
            "앞 랭크에서 받고, 계산하고, 뒤 랭크로 보냅니다. 역전파는 거꾸로입니다.",
            "받은 텐서에 requires_grad_()를 켜면 역전파 뒤에 그 .grad가 생깁니다.",
            "뒤 랭크에서 받은 그래디언트로 y.backward(grad)를 부르고 x.grad를 앞 랭크로 보내세요.",
        ),
        "en": (
            "Receive from the rank before, compute, send to the rank behind. Backward in reverse.",
            "With requires_grad_() on what was received, backward leaves its .grad.",
            "y.backward(grad) with the gradient from the rank behind; x.grad goes one rank back.",
        ),
    },
)


# --- 12.leave -----------------------------------------------------------------------------------


def check_leave(leave, rank, world_size):
    import gc

    import torch
    from torch import nn

    def build():
        torch.manual_seed(3)
        model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(12)))
        model.append(model[0])  # a layer that is used twice: its gradient is a sum
        return model

    plain, x = build(), torch.ones(4, 64)
    model, taken = build(), []
    sizes = {}

    def put(parameter, gradient):
        taken.append(id(parameter))
        sizes[id(parameter)] = None if gradient is None else gradient.double().sum().item()

    gc.collect()
    leave(model, put)
    counts, same = [], True
    with measured() as seen:
        for _ in range(2):
            taken.clear()
            model(x).square().mean().backward()
            counts.append(sorted(taken) == sorted(id(p) for p in model.parameters()))
    plain(x).square().mean().backward()
    for p, want in zip(model.parameters(), plain.parameters(), strict=True):
        got = sizes.get(id(p))
        same = same and got is not None and abs(got - want.grad.double().sum().item()) < 1e-4
    left = sum(p.grad is not None for p in model.parameters())
    one = 64 * 64 * 4
    peak = seen.record["memory"]["peaks"]["gradients"] / one
    calls = len(taken)
    return [
        expect("calls", all(counts), "calls_off", got=calls, want=12),
        expect("values", same, "differs"),
        expect("none", left == 0, "left", got=left),
        expect("memory", peak <= 2, "too_high", got=f"{peak:.0f}"),
    ]


_LEAVE = """\
def leave(model, put):
    def go(parameter):
        put(parameter, parameter.grad)
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(go)
"""

LEAVE = Exercise(
    id="12.leave",
    names=("leave",),
    checker=check_leave,
    num_ranks=1,
    time_limit=30.0,
    cases={
        "calls": {
            "ko": "역전파마다 파라미터마다 put 한 번",
            "en": "put once for each parameter and backward",
        },
        "values": {"ko": "그래디언트 값", "en": "the gradients"},
        "none": {"ko": "남은 그래디언트 없음", "en": "no gradient is left"},
        "memory": {
            "ko": "살아 있는 그래디언트 두 개 이하",
            "en": "at most two gradients alive",
        },
    },
    messages={
        "calls_off": {
            "ko": "역전파 한 번에 put이 {got}번 불렸습니다. {want}번이어야 합니다",
            "en": "a backward called put {got} times, should be {want}",
        },
        "differs": {
            "ko": "그래디언트가 다릅니다. 한 층이 두 번 쓰일 수 있고, 역전파는 여러 번 합니다",
            "en": "gradients differ: a layer may be used twice, and backward runs more than once",
        },
        "left": {
            "ko": "파라미터 {got}개에 .grad가 남아 있습니다",
            "en": "{got} parameters still have a .grad",
        },
        "too_high": {
            "ko": "그래디언트가 한때 {got}개 살아 있었습니다. 언제 놓아 주나요?",
            "en": "{got} gradients were alive at one time: when are they let go?",
        },
    },
    solution=_LEAVE,
    wrong=(
        # Put, and kept
        _LEAVE.replace("        parameter.grad = None\n", ""),
        # The hook of the tensor: runs before .grad is there
        """\
def leave(model, put):
    for parameter in model.parameters():
        parameter.register_hook(lambda grad, p=parameter: put(p, grad))
""",
        # When the whole backward is over
        """\
def leave(model, put):
    left = len(list(model.parameters()))

    def go(parameter):
        nonlocal left
        left -= 1
        if left == 0:
            for p in model.parameters():
                put(p, p.grad)
                p.grad = None
            left = len(list(model.parameters()))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(go)
""",
        # With each use of a layer, not with each parameter
        """\
def leave(model, put):
    def go(layer, *_):
        put(layer.weight, layer.weight.grad)
        layer.weight.grad = None

    for layer in model:
        layer.register_full_backward_hook(go)
""",
    ),
    hints={
        "ko": (
            "autograd가 .grad에 더한 바로 그때 불리는 훅이 있습니다.",
            "register_post_accumulate_grad_hook의 함수는 파라미터를 받습니다.",
            "훅에서 put(parameter, parameter.grad)를 부르고 parameter.grad = None으로 놓아 주세요.",
        ),
        "en": (
            "There is a hook that runs just when autograd has added to .grad.",
            "The function of register_post_accumulate_grad_hook gets the parameter.",
            "In the hook call put(parameter, parameter.grad), then set parameter.grad = None.",
        ),
    },
)


# --- 12.balance ---------------------------------------------------------------------------------


def check_balance(balance, rank, world_size):
    from itertools import accumulate, pairwise

    def fullest(costs, sizes):
        ends = list(accumulate(sizes, initial=0))
        return max(sum(costs[a:b]) for a, b in pairwise(ends))

    def shorten(costs):
        return str(costs) if len(costs) <= 12 else f"{str(costs[:12])[:-1]}, …]"

    def best(costs, devices):
        """The least limit, found by dynamic programming over cuts."""
        total = list(accumulate(costs, initial=0))
        row = total[1:]
        for k in range(1, devices):
            row = [
                min(max(row[j - 1], total[i + 1] - total[j]) for j in range(k, i + 1))
                if i >= k
                else total[-1]
                for i in range(len(costs))
            ]
        return row[-1]

    cases = {
        "equal": [([7] * 100, 3), ([5] * 12, 4)],
        "ends": [([90] + [10] * 20 + [160], 3), ([100, 1, 1, 1, 1, 1], 3)],
        "mixed": [([1, 2, 3, 4, 5, 6, 7, 8, 9], 3), ([4, 4, 4, 1, 9, 2, 2, 7, 3, 3, 8, 1], 4)],
        "tight": [([9, 9, 9], 3), ([50, 1, 1], 3)],
    }
    findings = []
    for case, jobs in cases.items():
        for costs, devices in jobs:
            sizes = balance(list(costs), devices)
            listed = isinstance(sizes, list | tuple) and all(type(k) is int for k in sizes)
            if not listed or len(sizes) != devices:
                findings.append(expect(case, False, "sizes", got=describe(sizes), devices=devices))
                break
            if sum(sizes) != len(costs) or min(sizes) < 1:
                findings.append(expect(case, False, "sum", got=str(list(sizes)), n=len(costs)))
                break
            got, want = fullest(costs, sizes), best(costs, devices)
            shown = {"got": got, "want": want, "sizes": str(list(sizes)), "costs": shorten(costs)}
            finding = expect(case, got <= want, "too_full", **shown)
            findings.append(finding)
            if not finding["ok"]:
                break
    return findings


_BALANCE = """\
def balance(costs, devices):
    def cut(limit):
        sizes, filled = [0], 0
        for i, cost in enumerate(costs):
            left = len(costs) - i
            full = filled + cost > limit or left <= devices - len(sizes)
            if sizes[-1] and full:
                sizes.append(0)
                filled = 0
            sizes[-1] += 1
            filled += cost
        return sizes

    low, high = max(costs), sum(costs)
    while low < high:
        limit = (low + high) // 2
        low, high = (low, limit) if len(cut(limit)) <= devices else (limit + 1, high)
    return cut(low)
"""

BALANCE = Exercise(
    id="12.balance",
    names=("balance",),
    checker=check_balance,
    num_ranks=1,
    time_limit=30.0,
    where="kernel",
    cases={
        "equal": {"ko": "층이 모두 같을 때", "en": "equal layers"},
        "ends": {"ko": "양 끝이 무거울 때", "en": "heavy ends"},
        "mixed": {"ko": "제각각일 때", "en": "layers of all sizes"},
        "tight": {"ko": "장치마다 층이 하나씩일 때", "en": "one layer for each device"},
    },
    messages={
        "sizes": {
            "ko": "{got}: 장치마다 정수 하나씩, {devices}개를 돌려주세요",
            "en": "{got}: return a whole number for each of the {devices} devices",
        },
        "sum": {
            "ko": "{got}: 층의 개수는 장치마다 1 이상, 합은 {n}이어야 합니다",
            "en": "{got}: numbers of layers, 1 or more for each device, {n} together",
        },
        "too_full": {
            "ko": "costs={costs}를 {sizes}로 나누면 가장 찬 장치에 {got}바이트가 들어갑니다. "
            "{want}바이트까지 줄일 수 있습니다",
            "en": "costs={costs} cut as {sizes}: the fullest device has {got} bytes; {want} are "
            "possible",
        },
    },
    solution=_BALANCE,
    wrong=(
        # As many layers for each, whatever they cost
        """\
def balance(costs, devices):
    n = len(costs)
    return [n * (i + 1) // devices - n * i // devices for i in range(devices)]
""",
        # Filled up to the mean; the last one takes what is left
        """\
def balance(costs, devices):
    mean, sizes, filled = sum(costs) / devices, [0], 0
    for i, cost in enumerate(costs):
        if filled + cost > mean and sizes[-1] and len(sizes) < devices:
            sizes.append(0)
            filled = 0
        sizes[-1] += 1
        filled += cost
    return sizes + [0] * (devices - len(sizes))
""",
        # The best limit, but devices that stay empty
        _BALANCE.replace(" or left <= devices - len(sizes)", ""),
    ),
    hints={
        "ko": (
            "거꾸로 물어보세요. 한도가 주어지면 장치 몇 개로 충분한가요? 하나씩 가득 채워 보세요.",
            "그 답이 devices 이하가 되는 가장 작은 한도를 이분 탐색으로 찾으세요.",
            "남은 층의 수가 남은 장치의 수와 같아지면 장치마다 하나씩 주세요.",
        ),
        "en": (
            "Ask it the other way round: how many devices does a given limit need? Fill each up.",
            "Search for the smallest limit that needs no more than `devices`, by halving.",
            "Once as many layers are left as devices, give each of them one.",
        ),
    },
)

EXERCISES = [MOVED, RELAY, LEAVE, BALANCE]
