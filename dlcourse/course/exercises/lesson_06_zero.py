"""The exercises of lesson 06: bytes by stage, cutting, clipping shards, and stage 3 in a bound."""

from __future__ import annotations

from dlcourse.course.exercises import (
    Exercise,
    as_number,
    expect,
    expect_calls,
    expect_close,
    expect_sent,
    gathered,
    measured,
    not_number,
)

# --- 06.bytes -----------------------------------------------------------------------------------


def check_bytes(bytes_per_rank, rank, world_size):
    from dlcourse.formulas.states import state_bytes

    findings = []
    for stage in range(4):
        for num_parameters, ranks in ((1000, 1), (7.5e9, 4), (7.5e9, 64), (1e12, 1024)):
            sizes = state_bytes(num_parameters, precision="master", world_size=ranks, stage=stage)
            answer = bytes_per_rank(num_parameters, ranks, stage)
            want, got = sum(sizes.values()), as_number(answer)
            case = f"stage{stage}"
            if got is None:
                findings.append(not_number(case, answer))
                continue
            gib = abs(got * 2**30 / 1e9 - want) < 1e-6 * want
            findings.append(
                expect(
                    case,
                    abs(got - want) <= 1e-9 * want,
                    "gib" if gib else "off",
                    parameters=f"{num_parameters:g}",
                    ranks=ranks,
                    got=f"{got:.6g}",
                    want=f"{want:.6g}",
                    each=f"{got / num_parameters:.4g}",
                )
            )
    told = set()
    return [f for f in findings if f["ok"] or not (f["case"] in told or told.add(f["case"]))]


_BYTES = """\
def bytes_per_rank(num_parameters, ranks, stage):
    parameters = 2 / ranks if stage >= 3 else 2
    gradients = 2 / ranks if stage >= 2 else 2
    state = 12 / ranks if stage >= 1 else 12
    return num_parameters * (parameters + gradients + state)
"""

BYTES = Exercise(
    id="06.bytes",
    names=("bytes_per_rank",),
    checker=check_bytes,
    num_ranks=1,
    where="kernel",
    cases={
        f"stage{n}": {
            "ko": f"{n}단계" + (" (나누지 않음)" if n == 0 else ""),
            "en": f"stage {n}" + (" (nothing divided)" if n == 0 else ""),
        }
        for n in range(4)
    },
    messages={
        "off": {
            "ko": "파라미터 {parameters}개, 랭크 {ranks}개: {got}바이트는 파라미터당 "
            "{each}바이트입니다. 정답은 {want}바이트입니다",
            "en": "{parameters} parameters, {ranks} ranks: {got} bytes are {each} a parameter; "
            "it should be {want} bytes",
        },
        "gib": {
            "ko": "GiB로 나눈 값 같습니다. 바이트 그대로 돌려주세요",
            "en": "this looks divided by GiB: return plain bytes",
        },
    },
    solution=_BYTES,
    wrong=(
        # Everything divided from stage 1 on
        "def bytes_per_rank(num_parameters, ranks, stage):\n"
        "    return 16 * num_parameters / (ranks if stage else 1)\n",
        # The slogan
        "def bytes_per_rank(num_parameters, ranks, stage):\n"
        "    return 16 * num_parameters / (1, 4, 8, ranks)[stage]\n",
        # Adam's two moments, without the master copy
        _BYTES.replace("12", "8"),
        _BYTES.replace("stage >= 2", "stage >= 3"),
    ),
    hints={
        "ko": (
            "파라미터 하나에 2 + 2 + 12바이트입니다. 단계마다 무엇을 나누나요?",
            "1단계는 12를, 2단계는 그래디언트의 2를, 3단계는 파라미터의 2까지 ranks로 나눕니다.",
        ),
        "en": (
            "A parameter takes 2 + 2 + 12 bytes. Which of them does each stage divide?",
            "Stage 1 divides the 12 by ranks, stage 2 also the gradient's 2, stage 3 also the "
            "parameter's 2.",
        ),
    },
)


# --- 06.cut -------------------------------------------------------------------------------------


def check_cut(cut, join, rank, world_size):
    import torch

    findings = []
    for case, shapes in (
        ("even", [(4, 3), (12,)]),
        ("uneven", [(5, 3), (4,), (2, 2)]),
        ("tiny", [(2,)]),
    ):
        tensors, start = [], 1.0
        for shape in shapes:  # whole numbers from 1 on, so that padding is seen
            count = torch.Size(shape).numel()
            tensors.append(torch.arange(start, start + count).view(shape))
            start += count
        total = int(start) - 1
        shard = cut([tensor.clone() for tensor in tensors])
        n = -(-total // world_size)
        usable = isinstance(shard, torch.Tensor) and shard.layout == torch.strided
        usable = usable and shard.device.type == "cpu"
        lengths = gathered(shard.numel() if usable else -1)
        findings.append(
            expect(case, lengths == [n] * world_size, "lengths", got=str(lengths), want=n)
        )
        if lengths != [n] * world_size:
            continue
        row = torch.nn.functional.pad(torch.cat([t.flatten() for t in tensors]), (0, n))
        findings.append(expect_close(case, shard.flatten(), row[rank * n : (rank + 1) * n].clone()))
        with measured() as seen:
            joined = join(shard, list(shapes))
        good = isinstance(joined, list | tuple) and len(joined) == len(tensors)
        findings.append(expect("joined", good, "not_tensors", want=len(tensors)))
        if good:
            findings += [expect_close("joined", a, b) for a, b in zip(joined, tensors, strict=True)]
        if case == "uneven":
            least = (world_size - 1) * n * 4
            findings.append(expect_sent("bytes", seen, minimum=least))
            own = shard.untyped_storage().nbytes()
            findings.append(expect("memory", own <= 4 * n, "whole_kept", got=own, want=4 * n))
    told = set()
    return [f for f in findings if f["ok"] or not (f["case"] in told or told.add(f["case"]))]


_CUT = """\
def cut(tensors):
    row = torch.cat([tensor.flatten() for tensor in tensors])
    n = -(-row.numel() // world_size)
    row = F.pad(row, (0, n * world_size - row.numel()))
    return row[rank * n : (rank + 1) * n].clone()


def join(shard, shapes):
    row = torch.empty(shard.numel() * world_size)
    dist.all_gather_single(row, shard)
    sizes = [torch.Size(shape).numel() for shape in shapes]
    pieces = row[: sum(sizes)].split(sizes)
    return [piece.view(shape) for piece, shape in zip(pieces, shapes)]
"""

CUT = Exercise(
    id="06.cut",
    names=("cut", "join"),
    checker=check_cut,
    num_ranks=3,
    cases={
        "even": {"ko": "24개를 셋으로 나누기", "en": "24 elements, three shards"},
        "uneven": {"ko": "23개를 셋으로 나누기", "en": "23 elements, three shards"},
        "tiny": {"ko": "랭크보다 적은 2개", "en": "2 elements, fewer than ranks"},
        "joined": {"ko": "join은 원래 텐서들을 돌려줌", "en": "join gives the tensors back"},
        "bytes": {"ko": "join은 가장 적은 바이트만 보냄", "en": "join sends as little as can be"},
        "memory": {"ko": "샤드의 메모리는 샤드만큼만", "en": "a shard's memory is the shard's own"},
    },
    messages={
        "lengths": {
            "ko": "샤드 길이가 랭크 순서대로 {got}입니다. 모두 {want}이어야 합니다 (-1은 CPU "
            "텐서가 아닌 것)",
            "en": "shards have lengths {got} by rank (-1: no tensor on the CPU); all need {want}",
        },
        "not_tensors": {
            "ko": "join은 텐서 {want}개를 리스트로 돌려줘야 합니다",
            "en": "join must give a list of {want} tensors",
        },
        "whole_kept": {
            "ko": "샤드가 {got}바이트짜리 스토리지를 붙잡고 있습니다 ({want}바이트면 됩니다). 뷰는 "
            "전체를 살려 둡니다",
            "en": "the shard holds a storage of {got} bytes where {want} are enough: a view keeps "
            "the whole row alive",
        },
    },
    solution=_CUT,
    wrong=(
        # A view: nothing is saved
        _CUT.replace(".clone()", ""),
        # No padding: ranks have shards of different lengths
        "def cut(tensors):\n    row = torch.cat([t.flatten() for t in tensors])\n"
        "    return row.tensor_split(world_size)[rank].clone()\n\n\n"
        + _CUT[_CUT.index("def join") :],
        # All-reduce of zeros with my part: twice the bytes
        _CUT.replace(
            "    row = torch.empty(shard.numel() * world_size)\n"
            "    dist.all_gather_single(row, shard)\n",
            "    n = shard.numel()\n    row = torch.zeros(n * world_size)\n"
            "    row[rank * n : (rank + 1) * n] = shard\n    dist.all_reduce(row)\n",
        ),
        # Rounded down: the last elements are lost
        _CUT.replace("-(-row.numel() // world_size)", "row.numel() // world_size").replace(
            "row = F.pad", "row = row[: n * world_size] if n else F.pad"
        ),
    ),
    hints={
        "ko": (
            "torch.cat으로 한 줄을 만들고, 길이가 world_size로 나누어떨어지도록 뒤에 0을 붙이세요.",
            "n = -(-len // world_size)는 올림 나눗셈입니다. 자른 뒤에는 .clone()으로 "
            "전체를 놓아주세요.",
            "join: dist.all_gather_single(row, shard) 뒤에 패딩을 버리고 split과 view를 쓰세요.",
        ),
        "en": (
            "Make one row by torch.cat, and append zeros until world_size divides its length.",
            "n = -(-length // world_size) rounds up. After cutting, .clone() lets the row go.",
            "join: dist.all_gather_single(row, shard), drop the padding, then split and view.",
        ),
    },
)


# --- 06.clip ------------------------------------------------------------------------------------


def check_clip(clip_shards, rank, world_size):
    import math

    import torch
    from torch import nn

    findings = []
    for case, scale in (("large", 3.0), ("small", 0.01)):
        random = torch.Generator().manual_seed(5)
        # Rank 0 holds most of the norm
        rows = [scale * torch.randn(world_size * n, generator=random) for n in (4, 2)]
        for row in rows:
            row[: row.numel() // world_size] *= 5
        whole = [nn.Parameter(torch.zeros_like(row)) for row in rows]
        shards = []
        for parameter, row in zip(whole, rows, strict=True):
            parameter.grad = row.clone()
            mine = row.chunk(world_size)[rank].clone()
            shards.append(nn.Parameter(torch.zeros_like(mine)))
            shards[-1].grad = mine
        norm = nn.utils.clip_grad_norm_(whole, 1.0).item()
        with measured() as seen:
            got = clip_shards(shards, 1.0)
        answer, got = got, as_number(got)
        if got is None:
            findings.append(not_number("norm", answer))
            continue
        alone = float(torch.cat([row.chunk(world_size)[rank] for row in rows]).norm())
        key = "local" if abs(got - alone) < 1e-5 * alone else "off"
        if abs(got - norm / world_size**0.5) < 1e-5 * norm:
            key = "averaged"
        right = abs(got - norm) <= 1e-5 * norm
        findings.append(expect("norm", right, key, got=f"{got:.4g}", want=f"{norm:.4g}"))
        want = torch.cat([p.grad.chunk(world_size)[rank] for p in whole])
        have = [p.grad for p in shards if p.grad is not None]
        every = len(have) == len(shards)
        off = (torch.cat(have) - want).abs().max().item() if every else math.inf
        findings.append(expect(case, off <= 1e-5 * scale, "scaled", off=f"{off:.2g}"))
        if case == "large":
            share = 2 * (world_size - 1) / world_size
            findings.append(expect_calls("calls", seen, "all_reduce", 1))
            findings.append(expect_sent("calls", seen, minimum=share * 4, at_most=2.0))
    told = set()
    return [f for f in findings if f["ok"] or not (f["case"] in told or told.add(f["case"]))]


_CLIP = """\
def clip_shards(shards, max_norm):
    total = torch.stack([shard.grad.square().sum() for shard in shards]).sum()
    dist.all_reduce(total)
    norm = total.sqrt()
    for shard in shards:
        shard.grad *= (max_norm / norm).clamp(max=1.0)
    return norm
"""

CLIP = Exercise(
    id="06.clip",
    names=("clip_shards",),
    checker=check_clip,
    num_ranks=3,
    cases={
        "norm": {"ko": "모든 랭크의 샤드를 합친 노름", "en": "the norm over all ranks' shards"},
        "large": {"ko": "큰 그래디언트를 줄임", "en": "large gradients are scaled down"},
        "small": {"ko": "작은 그래디언트는 그대로 둠", "en": "small ones are left alone"},
        "calls": {"ko": "숫자 하나를 올리듀스 한 번으로", "en": "one number in one all-reduce"},
    },
    messages={
        "local": {
            "ko": "{got}은(는) 이 랭크의 샤드만의 노름입니다. 전체는 {want}입니다",
            "en": "{got} is the norm of this rank's shards alone; over all it is {want}",
        },
        "averaged": {
            "ko": "{got}은(는) 제곱의 합을 랭크 수로 나눈 값입니다. 나누지 않은 노름은 "
            "{want}입니다",
            "en": "{got} divides the sum of squares by the ranks; undivided the norm is {want}",
        },
        "off": {
            "ko": "{got}이(가) 나왔지만 {want}이어야 합니다. 더해야 하는 것은 노름이 아니라 제곱의 "
            "합입니다",
            "en": "got {got}, should be {want}: what adds up is the sum of squares, not the norm",
        },
        "scaled": {
            "ko": "그래디언트가 단일 프로세스의 clip_grad_norm_과 최대 {off}만큼 다릅니다",
            "en": "gradients are off by up to {off} from clip_grad_norm_ in one process",
        },
    },
    solution=_CLIP,
    wrong=(
        # What a habit writes: each rank clips by its own norm
        "def clip_shards(shards, max_norm):\n"
        "    return nn.utils.clip_grad_norm_(shards, max_norm)\n",
        # Norms added
        "def clip_shards(shards, max_norm):\n"
        "    norm = torch.stack([s.grad.norm() for s in shards]).norm()\n"
        "    dist.all_reduce(norm)\n    for s in shards:\n"
        "        s.grad *= (max_norm / norm).clamp(max=1.0)\n    return norm\n",
        # Scales small gradients up
        _CLIP.replace(".clamp(max=1.0)", ""),
        # One all-reduce a shard
        "def clip_shards(shards, max_norm):\n    total = torch.zeros(())\n"
        "    for s in shards:\n        part = s.grad.square().sum()\n"
        "        dist.all_reduce(part)\n        total += part\n    norm = total.sqrt()\n"
        "    for s in shards:\n        s.grad *= (max_norm / norm).clamp(max=1.0)\n"
        "    return norm\n",
    ),
    hints={
        "ko": (
            "nn.utils.clip_grad_norm_은 이 랭크의 샤드밖에 모릅니다. 무엇을 서로 알려야 할까요?",
            "제곱의 합은 랭크끼리 더할 수 있습니다. 더한 뒤에 제곱근을 취하세요.",
            "max_norm / norm이 1보다 크면 그래디언트를 건드리지 않습니다: .clamp(max=1.0)",
        ),
        "en": (
            "nn.utils.clip_grad_norm_ sees this rank's shards alone. What must ranks tell?",
            "Sums of squares can be added over ranks; take the root afterwards.",
            "Where max_norm / norm is above 1, leave gradients alone: .clamp(max=1.0).",
        ),
    },
)


# --- 06.peak ------------------------------------------------------------------------------------

LAYERS, WIDTH, ROWS = 12, 128, 4
LAYERS_AT_ONCE = 6  # one is enough; Gloo's threads let go of a buffer a little later


def check_peak(linear, rank, world_size):
    import gc

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
        x = inputs[rank].clone()
        for shard in shards:
            x = torch.tanh(linear(x, shard))
        loss = x.square().mean()
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
    held = sum(s.nbytes for s in shards)
    above = (seen.peak() - 3 * held) / layer  # shards, their gradients, and the wanted ones
    findings.append(
        expect("peak", above <= LAYERS_AT_ONCE, "too_high", got=f"{above:.1f}", layers=LAYERS)
    )
    return findings


_PEAK = """\
class GatheredLinear(torch.autograd.Function):
    @staticmethod
    def gather(x, shard):
        row = torch.empty(shard.numel() * world_size)
        dist.all_gather_single(row, shard.detach())
        return row.view(-1, x.shape[-1])

    @staticmethod
    def forward(ctx, x, shard):
        ctx.save_for_backward(x, shard)
        return x @ GatheredLinear.gather(x, shard).T

    @staticmethod
    def backward(ctx, grad_y):
        x, shard = ctx.saved_tensors
        grad_x = grad_y @ GatheredLinear.gather(x, shard)
        grad_shard = torch.empty_like(shard)
        dist.reduce_scatter_single(grad_shard, (grad_y.T @ x).flatten())
        return grad_x, grad_shard / world_size


def linear(x, shard):
    return GatheredLinear.apply(x, shard)
"""
_AUTOGRAD = """\
class Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shard):
        row = torch.empty(shard.numel() * world_size)
        dist.all_gather_single(row, shard.detach())
        return row

    @staticmethod
    def backward(ctx, grad):
        part = torch.empty(grad.numel() // world_size)
        dist.reduce_scatter_single(part, grad.contiguous())
        return part / world_size


def linear(x, shard):
    return x @ Gather.apply(shard).view(-1, x.shape[-1]).T
"""

PEAK = Exercise(
    id="06.peak",
    names=("linear",),
    checker=check_peak,
    num_ranks=4,
    time_limit=30.0,
    cases={
        "loss": {"ko": "손실이 단일 프로세스와 같음", "en": "the loss is one process's"},
        "gradient": {
            "ko": "shard.grad는 모든 랭크의 평균에서 자기 몫",
            "en": "shard.grad is its part of the mean over ranks",
        },
        "peak": {
            "ko": "최대 메모리: 샤드와 그 그래디언트에 더해 층 여섯 개분까지",
            "en": "peak: shards, their gradients, and at most six layers' worth on top",
        },
    },
    messages={
        "no_gradient": {
            "ko": "{number}번 층의 shard.grad가 None입니다. backward가 샤드의 그래디언트를 "
            "돌려줘야 합니다",
            "en": "shard.grad of layer {number} is None: backward must return it",
        },
        "summed": {
            "ko": "{number}번 층: 평균이 아니라 합입니다. world_size로 나누세요",
            "en": "layer {number} has the sum over ranks, not the mean: divide by world_size",
        },
        "far_off": {
            "ko": "{number}번 층의 그래디언트가 최대 {off}만큼 다릅니다",
            "en": "the gradient of layer {number} is off by up to {off}",
        },
        "too_high": {
            "ko": "층 {got}개분이 더 있습니다 (층은 모두 {layers}개). 순전파에서 모은 가중치를 "
            "누가 역전파까지 붙잡고 있나요?",
            "en": "{got} layers' worth on top (there are {layers} layers): who keeps the weights "
            "that forward gathered until backward?",
        },
    },
    solution=_PEAK,
    wrong=(
        _AUTOGRAD,  # autograd saves every gathered weight
        _PEAK.replace("grad_shard / world_size", "grad_shard"),
        # Its own gradient only
        _PEAK.replace(
            "        dist.reduce_scatter_single(grad_shard, (grad_y.T @ x).flatten())\n"
            "        return grad_x, grad_shard / world_size\n",
            "        grad_shard = (grad_y.T @ x).flatten().chunk(world_size)[rank].clone()\n"
            "        return grad_x, grad_shard\n",
        ),
        # Saves the whole weight instead of the shard
        _PEAK.replace(
            "        ctx.save_for_backward(x, shard)\n"
            "        return x @ GatheredLinear.gather(x, shard).T\n",
            "        weight = GatheredLinear.gather(x, shard)\n"
            "        ctx.save_for_backward(x, shard)\n        ctx.weight = weight\n"
            "        return x @ weight.T\n",
        ).replace("grad_y @ GatheredLinear.gather(x, shard)", "grad_y @ ctx.weight"),
    ),
    hints={
        "ko": (
            "autograd는 행렬 곱에 쓴 가중치를 역전파까지 저장하므로 층마다 하나씩 남습니다. "
            "torch.autograd.Function을 직접 쓰면 무엇을 저장할지 정할 수 있습니다.",
            "forward에서는 x와 shard만 저장하고, backward에서 가중치를 다시 모으세요.",
            "grad_x = grad_y @ W이고, W의 그래디언트는 grad_y.T @ x입니다. "
            "dist.reduce_scatter_single로 더해서 자기 몫만 받고 world_size로 나누세요.",
        ),
        "en": (
            "autograd saves the weight of a matrix product until backward: one a layer. With a "
            "torch.autograd.Function of your own you decide what is saved.",
            "In forward, save x and shard alone; in backward, gather the weight again.",
            "grad_x = grad_y @ W, and the gradient of W is grad_y.T @ x: add it up over the ranks "
            "by dist.reduce_scatter_single, keep your part, divide by world_size.",
        ),
    },
)

EXERCISES = [BYTES, CUT, CLIP, PEAK]
