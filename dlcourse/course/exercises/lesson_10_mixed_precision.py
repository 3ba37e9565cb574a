"""The exercises of lesson 10: bytes by way, one copy for three, clipping, a scaler in a storm."""

from __future__ import annotations

import math
from contextlib import nullcontext

from dlcourse.course.exercises import (
    Exercise,
    as_number,
    as_truth,
    describe,
    expect,
    expect_calls,
    expect_sent,
    measured,
    not_number,
    not_truth,
)


def _once(findings):
    """The first failure of each case, and all that passed."""
    told: set[str] = set()
    return [f for f in findings if f["ok"] or not (f["case"] in told or told.add(f["case"]))]


# --- 10.bytes -----------------------------------------------------------------------------------


def check_bytes(bytes_between_steps, rank, world_size):
    from dlcourse.formulas.recipe import PRECISIONS
    from dlcourse.formulas.states import state_bytes

    findings = []
    for way in PRECISIONS:
        for num_parameters in (1000, 873_728, 7_500_000_000):
            answer = bytes_between_steps(num_parameters, way)
            want, got = sum(state_bytes(num_parameters, precision=way).values()), as_number(answer)
            if got is None:
                findings.append(expect(way, False, "not_a_number", got=describe(answer)))
                continue
            each = got / num_parameters
            findings.append(
                expect(
                    way,
                    abs(got - want) <= 1e-9 * want,
                    "each" if each < 1 else "many" if got > want else "few",
                    each=f"{each:.4g}",
                )
            )
    return _once(findings)


_BYTES = """\
def bytes_between_steps(num_parameters, way):
    each = {
        "float32": 4 + 4 + 8,
        "autocast": 4 + 4 + 8,
        "master": 2 + 2 + 12,
        "bfloat16": 2 + 2 + 4,
    }
    return num_parameters * each[way]
"""

BYTES = Exercise(
    id="10.bytes",
    names=("bytes_between_steps",),
    checker=check_bytes,
    num_ranks=1,
    where="kernel",
    cases={
        "float32": {"ko": "float32", "en": "float32"},
        "autocast": {"ko": "autocast", "en": "autocast"},
        "master": {"ko": "마스터 가중치 (master)", "en": "master weights (master)"},
        "bfloat16": {"ko": "순수 bfloat16", "en": "pure bfloat16"},
    },
    messages={
        "not_a_number": {
            "ko": "{got}을(를) 돌려주었습니다. 바이트 수 하나를 돌려주세요",
            "en": "returned {got}: return one number of bytes",
        },
        "each": {
            "ko": "파라미터당 {each}바이트입니다. num_parameters를 곱했나요?",
            "en": "that is {each} bytes a parameter: is it multiplied by num_parameters?",
        },
        "many": {
            "ko": "파라미터당 {each}바이트는 너무 많습니다. 스텝이 끝난 뒤에도 남는 것만 세었나요?",
            "en": "{each} bytes a parameter are too many: is all of it there after the step?",
        },
        "few": {
            "ko": "파라미터당 {each}바이트는 너무 적습니다. 파라미터, 그래디언트, 옵티마이저 "
            "상태의 자료형은 각각 무엇인가요?",
            "en": "{each} bytes a parameter are too few: of which type are parameter, gradient and "
            "optimizer state?",
        },
    },
    solution=_BYTES,
    wrong=(
        # The slogan
        "def bytes_between_steps(num_parameters, way):\n"
        '    return num_parameters * (16 if way == "float32" else 8)\n',
        # Autocast's copies of weights do not outlive the step
        _BYTES.replace('"autocast": 4 + 4 + 8', '"autocast": 4 + 4 + 8 + 2'),
        # Moments in 16 bits beside the master copy
        _BYTES.replace("2 + 2 + 12", "2 + 2 + 8"),
        # Gradients of float32 parameters taken for 16-bit ones
        _BYTES.replace('"autocast": 4 + 4 + 8', '"autocast": 4 + 2 + 8'),
    ),
    hints={
        "ko": (
            "방법마다 파라미터, 그래디언트, Adam 모멘트 두 개(마스터가 있으면 그것도)의 자료형을 "
            "적어 "
            "보세요.",
            "autocast는 파라미터를 바꾸지 않습니다. 마스터는 4바이트이고, 모멘트도 "
            "4바이트씩입니다.",
        ),
        "en": (
            "For each way, write down the type of the parameter, its gradient, Adam's two moments, "
            "and of the master copy if there is one.",
            "Autocast changes no parameter. A master copy takes 4 bytes, and so does each moment.",
        ),
    },
)


# --- 10.copies ----------------------------------------------------------------------------------

ROWS, WIDTH, OUT = 512, 64, 16


def check_copies(project, rank, world_size):
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
    return _once(findings)


_COPIES = """\
def project(x, q, k, v):
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return F.linear(x, q), F.linear(x, k), F.linear(x, v)
"""

COPIES = Exercise(
    id="10.copies",
    names=("project",),
    checker=check_copies,
    num_ranks=1,
    cases={
        "bfloat16": {"ko": "autocast 안에서 같은 결과", "en": "same results under autocast"},
        "float32": {"ko": "autocast 밖에서 같은 결과", "en": "same results without autocast"},
        "gradients": {"ko": "x와 세 가중치의 그래디언트", "en": "gradients of x and all weights"},
        "memory": {"ko": "x의 복사본은 하나만 남음", "en": "one copy of x is kept"},
    },
    messages={
        "not_three": {
            "ko": "q, k, v의 결과 세 개를 돌려줘야 합니다",
            "en": "return the three results for q, k and v",
        },
        "types": {
            "ko": "결과의 자료형이 {got}입니다. 여기서는 모두 {want}이어야 합니다",
            "en": "results have types {got}; here all should be {want}",
        },
        "result": {
            "ko": "{which}의 결과가 F.linear와 다릅니다",
            "en": "the result for {which} is not that of F.linear",
        },
        "no_gradient": {
            "ko": "{which}에 그래디언트가 없습니다. 그래프를 끊지 않았나요?",
            "en": "{which} has no gradient: is the graph cut?",
        },
        "gradient": {
            "ko": "{which}의 그래디언트가 {off} 어긋납니다",
            "en": "the gradient of {which} is off by {off}",
        },
        "copies": {
            "ko": "역전파까지 남은 양이 x의 16비트 복사본 {got}개분입니다. autocast에만 맡기면 "
            "3개, 목표는 1개입니다",
            "en": "what is kept for backward amounts to {got} 16-bit copies of x; autocast alone "
            "keeps 3, the target is 1",
        },
    },
    solution=_COPIES,
    wrong=(
        # What autocast does by itself
        "def project(x, q, k, v):\n    return F.linear(x, q), F.linear(x, k), F.linear(x, v)\n",
        # Always bfloat16: breaks float32 training
        "def project(x, q, k, v):\n    x = x.bfloat16()\n"
        "    return tuple(F.linear(x, w.bfloat16()) for w in (q, k, v))\n",
        # The graph is cut at the copy
        _COPIES.replace("x.to(", "x.detach().to("),
        # Autocast switched off: float32 products
        "def project(x, q, k, v):\n    with torch.autocast(x.device.type, enabled=False):\n"
        "        return F.linear(x, q), F.linear(x, k), F.linear(x, v)\n",
    ),
    hints={
        "ko": (
            "autocast는 이미 맞는 자료형이면 변환하지 않습니다. 그렇다면 미리 한 번만 변환하면?",
            "torch.is_autocast_enabled(장치)와 torch.get_autocast_dtype(장치)로 지금의 자료형을 "
            "알아낼 수 있습니다. x.to(…)는 그래디언트를 전해 줍니다.",
        ),
        "en": (
            "Autocast leaves alone what has the right type already. What if you cast once, before?",
            "torch.is_autocast_enabled(device type) and torch.get_autocast_dtype(device type) tell "
            "the type; x.to(…) passes gradients on.",
        ),
    },
)


# --- 10.clip ------------------------------------------------------------------------------------


def check_clip(clipped_step, rank, world_size):
    import torch
    from torch import nn

    from dlcourse.training.mixed_precision.loss_scaler import LossScaler

    findings = []
    makers = {
        "torch": lambda: torch.amp.GradScaler("cpu", init_scale=1024.0),
        "ours": lambda: LossScaler(1024.0),
    }
    for case, make in makers.items():
        for factor, bad in ((3.0, False), (0.01, False), (1.0, True)):
            values = torch.tensor([1.0, -2.0, 2.0]) * factor
            weight = nn.Parameter(torch.zeros(3))
            optimizer, scaler = torch.optim.SGD([weight], lr=1.0), make()
            weight.grad = torch.full((3,), 77.0)  # left over from the step before
            scale = torch.tensor(float("inf") if bad else 1.0)
            norm = clipped_step((weight * values * scale).sum(), [weight], optimizer, scaler, 1.0)
            if bad:
                same = torch.equal(weight.detach(), torch.zeros(3))
                findings.append(expect("skip", same, "moved"))
                halved = scaler.get_scale() == 512.0
                findings.append(expect("skip", halved, "not_updated", got=scaler.get_scale()))
                continue
            true = values.norm().item()
            answer, norm = norm, as_number(norm)
            if norm is None:
                findings.append(not_number(case, answer))
                continue
            got, want = weight.detach(), -values * min(1.0, 1.0 / true)
            near = abs(norm - true) <= 1e-3 * true
            key = "scaled_norm" if abs(norm - 1024 * true) < true else "norm"
            if abs(norm - (values + 77 / 1024).norm().item()) < 1e-3:
                key = "leftover"
            findings.append(expect(case, near, key, got=f"{norm:.4g}", want=f"{true:.4g}"))
            length, wanted = got.norm().item(), want.norm().item()
            near = (got - want).norm().item() <= 1e-3 * wanted
            findings.append(expect(case, near, "length", got=f"{length:.3g}", want=f"{wanted:.3g}"))
    return _once(findings)


_CLIP = """\
def clipped_step(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    return norm
"""

CLIP = Exercise(
    id="10.clip",
    names=("clipped_step",),
    checker=check_clip,
    num_ranks=1,
    cases={
        "torch": {"ko": "torch의 GradScaler로", "en": "with torch's GradScaler"},
        "ours": {"ko": "우리 LossScaler로", "en": "with our LossScaler"},
        "skip": {
            "ko": "무한대를 만나면 건너뛰고 스케일을 낮춤",
            "en": "an infinity: skipped, and the scale lowered",
        },
    },
    messages={
        "scaled_norm": {
            "ko": "노름 {got}은(는) 스케일이 곱해진 값입니다. 진짜 노름은 {want}입니다",
            "en": "a norm of {got} is that of scaled gradients; the true one is {want}",
        },
        "leftover": {
            "ko": "노름이 {got}입니다. 지난 스텝의 그래디언트가 섞여 있습니다. 없으면 {want}입니다",
            "en": "the norm is {got}: gradients of the step before are in it; without, {want}",
        },
        "norm": {
            "ko": "노름이 {got}입니다. {want}이어야 합니다",
            "en": "the norm is {got}, should be {want}",
        },
        "length": {
            "ko": "가중치가 {got}만큼 움직였습니다. {want}만큼이어야 합니다",
            "en": "the weights moved by {got}, should be {want}",
        },
        "moved": {
            "ko": "무한대가 있는데도 가중치가 바뀌었습니다",
            "en": "the weights changed, though there was an infinity",
        },
        "not_updated": {
            "ko": "스케일이 {got}입니다. 1024에서 512로 내려가야 합니다",
            "en": "the scale is {got}; it should have gone from 1024 to 512",
        },
    },
    solution=_CLIP,
    wrong=(
        # Clips scaled gradients: nearly nothing is left of them
        _CLIP.replace("    scaler.unscale_(optimizer)\n", ""),
        # Never updates
        _CLIP.replace("    scaler.update()\n", ""),
        # Goes around the scaler
        _CLIP.replace("scaler.step(optimizer)", "optimizer.step()"),
        # Adds to the gradients of the step before
        _CLIP.replace("    optimizer.zero_grad()\n", ""),
        # Clips to a scaled limit, and never learns the true norm
        _CLIP.replace("    scaler.unscale_(optimizer)\n", "").replace(
            "(parameters, max_norm)", "(parameters, max_norm * scaler.get_scale())"
        ),
    ),
    hints={
        "ko": (
            "backward가 끝나면 그래디언트에는 스케일이 곱해져 있습니다. 그대로 자르면 어떻게 "
            "될까요?",
            "순서: zero_grad, scale(loss).backward(), unscale_, clip_grad_norm_, step, update.",
        ),
        "en": (
            "After backward, gradients carry the scale. What does clipping do to them then?",
            "The order: zero_grad, scale(loss).backward(), unscale_, clip_grad_norm_, step, "
            "update.",
        ),
    },
)


# --- 10.scaler ----------------------------------------------------------------------------------


def _storm():
    """(bad rank or None, value) for each step: quiet stretches, bursts, a storm, a long calm."""
    inf, nan = float("inf"), float("nan")
    quiet = [(None, 0.0)]
    steps = quiet * 7 + [(1, inf)] + quiet * 2 + [(0, nan)] + quiet * 4 + [(2, -inf), (1, nan)] * 3
    steps += quiet * 3 + [(0, inf)] + (quiet * 2 + [(2, nan)]) * 5
    return steps + [(0, inf)] * 30 + quiet * 90 + [(1, inf)] + quiet * 3


def _power(scale):
    exponent = math.log2(scale) if 0 < scale < math.inf else 0.5
    return f"2^{exponent:.0f}" if exponent.is_integer() else f"{scale:g}"


def check_scaler(Scaler, rank, world_size):
    import torch

    interval, low, high = 3, 1.0, 2.0**24
    scaler = Scaler(2.0**16, interval)
    want, calm = 2.0**16, 0
    findings = []
    for number, (bad_rank, value) in enumerate(_storm()):
        before = float(scaler.scale)
        true = torch.tensor([0.5, -(rank + 1.0)])
        grads = [true * want, torch.zeros(3)]
        if bad_rank == rank:
            grads[number % 2][1] = value
        with measured() if number == 0 else nullcontext() as seen:
            good = scaler.unscale(grads)
        if number == 0:
            findings.append(expect_calls("calls", seen, "all_reduce", 1))
            share = 2 * (world_size - 1) / world_size
            findings.append(expect_sent("calls", seen, minimum=share * 4, at_most=2.0))
        answer, good = good, as_truth(good)
        if good is None:
            return _once([*findings, not_truth("together", answer)])
        ok = bad_rank is None
        kind = "seen" if bad_rank == rank else "other"
        findings.append(expect("together", good == ok, "good" if ok else kind, step=number))
        if bad_rank is None:
            right = torch.allclose(grads[0], true, rtol=1e-4)
            findings.append(expect("divided", right, "not_divided", step=number))
        if ok:
            calm += 1
            if calm == interval:
                want, calm = min(want * 2, high), 0
        else:
            want, calm = max(want / 2, low), 0
        got = float(scaler.scale)
        case = "range" if got < low or got > high or want in (low, high) else "scale"
        findings.append(
            expect(
                case,
                got == want,
                "after_good" if ok else "after_bad",
                step=number,
                got=_power(got),
                want=_power(want),
                before=_power(before),
            )
        )
        if got != want or good != ok:
            break
    return _once(findings)


_SCALER = """\
class Scaler:
    def __init__(self, scale=2.0**16, interval=3):
        self.scale, self.interval, self.calm = scale, interval, 0

    def unscale(self, grads):
        bad = torch.zeros(())
        for grad in grads:
            grad /= self.scale
            if not grad.isfinite().all():
                bad += 1
        dist.all_reduce(bad)
        if bad > 0:
            self.scale, self.calm = max(self.scale / 2, 1.0), 0
            return False
        self.calm += 1
        if self.calm == self.interval:
            self.scale, self.calm = min(self.scale * 2, 2.0**24), 0
        return True
"""

SCALER = Exercise(
    id="10.scaler",
    names=("Scaler",),
    checker=check_scaler,
    num_ranks=3,
    time_limit=30.0,
    cases={
        "together": {
            "ko": "모든 랭크가 함께 업데이트하거나 함께 건너뜀",
            "en": "all ranks step, or all skip",
        },
        "divided": {"ko": "그래디언트를 스케일로 나눔", "en": "gradients are divided by the scale"},
        "scale": {"ko": "스텝마다 올바른 스케일", "en": "the right scale after each step"},
        "range": {"ko": "폭풍에도 1과 2^24 사이", "en": "within 1 and 2^24, in any storm"},
        "calls": {"ko": "숫자 하나를 올리듀스 한 번으로", "en": "one number in one all-reduce"},
    },
    messages={
        "good": {
            "ko": "스텝 {step}: 멀쩡한 스텝인데 건너뛰었습니다",
            "en": "step {step}: skipped, though every rank's gradients were finite",
        },
        "seen": {
            "ko": "스텝 {step}: 이 랭크에 무한대나 NaN이 있는데도 업데이트합니다",
            "en": "step {step}: taken, though this rank has an infinity or a NaN",
        },
        "other": {
            "ko": "스텝 {step}: 다른 랭크에 무한대나 NaN이 있는데 이 랭크는 업데이트합니다",
            "en": "step {step}: taken here, though another rank has an infinity or a NaN",
        },
        "not_divided": {
            "ko": "스텝 {step}: 그래디언트를 제자리에서 그때의 스케일로 나눠야 합니다",
            "en": "step {step}: divide the gradients in place by the scale that they carry",
        },
        "after_good": {
            "ko": "멀쩡한 스텝 {step} 뒤의 스케일: {before}에서 {got}, 정답은 {want}",
            "en": "after step {step}, a good one, the scale went from {before} to {got}; it should "
            "be {want}",
        },
        "after_bad": {
            "ko": "나쁜 스텝 {step} 뒤의 스케일: {before}에서 {got}, 정답은 {want}",
            "en": "after step {step}, a bad one, the scale went from {before} to {got}; it should "
            "be {want}",
        },
    },
    solution=_SCALER,
    wrong=(
        # Each rank for itself
        _SCALER.replace("        dist.all_reduce(bad)\n", ""),
        # Quiet steps are counted on through a bad one
        _SCALER.replace("max(self.scale / 2, 1.0), 0", "max(self.scale / 2, 1.0), self.calm"),
        # No floor: a long storm drives the scale to nothing
        _SCALER.replace("max(self.scale / 2, 1.0)", "self.scale / 2"),
        # No ceiling
        _SCALER.replace("min(self.scale * 2, 2.0**24)", "self.scale * 2"),
        # Sees infinities, not NaN
        _SCALER.replace("not grad.isfinite().all()", "grad.isinf().any()"),
        # Asks the other ranks only when something is wrong here: they wait for ever
        _SCALER.replace(
            "        dist.all_reduce(bad)\n",
            "        if bad > 0:\n            dist.all_reduce(bad)\n",
        ),
        # Grows after each good step
        _SCALER.replace("self.calm == self.interval", "True"),
        # Divides by the new scale
        _SCALER.replace("            grad /= self.scale\n", "").replace(
            "        return True\n",
            "        for grad in grads:\n            grad /= self.scale\n        return True\n",
        ),
    ),
    hints={
        "ko": (
            "나누고, 살피고, 모두에게 묻고, 그다음에 스케일을 바꾸세요. 아무 일 없는 랭크도 "
            "물어야 합니다.",
            "나쁜 그래디언트의 수를 dist.all_reduce로 더하면, 0인지 아닌지가 모든 랭크에서 "
            "같습니다.",
            "나쁜 스텝은 조용한 스텝 수를 0으로 되돌립니다. 스케일은 max(…, 1.0), min(…, "
            "2.0**24)로 "
            "묶어 두세요. NaN은 무한대가 아닙니다: isfinite.",
        ),
        "en": (
            "Divide, look, ask all ranks, then change the scale. A rank without trouble must ask, "
            "too.",
            "Add up the number of bad gradients by dist.all_reduce: all ranks then see the same.",
            "A bad step sets the count of quiet ones back to 0. Hold the scale by max(…, 1.0) and "
            "min(…, 2.0**24). A NaN is no infinity: isfinite.",
        ),
    },
)

EXERCISES = [BYTES, COPIES, CLIP, SCALER]
