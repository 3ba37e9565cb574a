"""The exercises of lesson 09: accumulate, count targets alike, and do both in ranks."""

from __future__ import annotations

import math

from dlcourse.course.exercises import (
    Exercise,
    as_number,
    expect,
    expect_close,
    expect_sent,
    gathered,
    largest,
    measured,
)

TOLERANCE = 1e-6  # float64, but a learner's factors may be float32; wrong answers are off by 1e-3

# --- 09.accumulate ------------------------------------------------------------------------------


def check_accumulate(accumulate, rank, world_size):
    import torch

    from dlcourse.training.accumulation import backward_equal

    findings = []
    for number in (4, 2):
        parts = _parts([[8] * 2] * number)
        wanted, model = _gpt(), _gpt()
        loss = wanted(*map(torch.cat, zip(*parts, strict=True)))
        loss.backward()
        with measured() as allowed:
            backward_equal(_gpt(), parts)
        with measured() as seen:
            got = accumulate(model, parts)
        findings += _judge_gradient(model, wanted, number=number)
        findings.append(expect_close("loss", got, loss.item(), atol=TOLERANCE))
        findings.append(_judge_memory(seen, allowed))
    return findings


def _judge_gradient(model, wanted, *, number=0):
    """The gradient of all parts; says by which factor it is off, where it is off by one."""
    got, want = _gradient(model), _gradient(wanted)
    if got is None:
        return [expect("gradient", False, "no_gradient")]
    off = (got - want).norm() / want.norm()
    factor = (got @ want / (want @ want)).item()
    scaled = abs(factor - number) < 1e-6 and (got - number * want).norm() < 1e-6 * got.norm()
    key = "not_divided" if number and scaled else "off"
    return [expect("gradient", off < TOLERANCE, key, off=f"{100 * off:.3g}%", number=number)]


def _judge_memory(seen, allowed, case="memory"):
    got, want = (m.record["memory"]["peaks"]["activations"] for m in (seen, allowed))
    return expect(case, got <= 1.4 * want, "too_large", ratio=f"{got / want:.2g}")


def _gpt(seed=0, dtype="float64"):
    import torch

    from dlcourse.models.gpt import GPT, GPTConfig

    config = GPTConfig(block_size=8, n_layer=1, n_head=2, n_embd=16, vocab_size=64)
    return GPT(config, seed=seed).to(getattr(torch, dtype))


def _parts(lengths, seed=0):
    """For each micro-batch the number of targets in each of its sequences; the rest is -100."""
    import torch

    random = torch.Generator().manual_seed(seed)
    parts = []
    for rows in lengths:
        x, y = torch.randint(64, (2, len(rows), 8), generator=random)
        for row, length in enumerate(rows):
            y[row, length:] = -100
        parts.append((x, y))
    return parts


def _gradient(model):
    import torch

    found = [p.grad for p in model.parameters()]
    return None if any(g is None for g in found) else torch.cat([g.flatten() for g in found])


_GRADIENT_MESSAGES = {
    "no_gradient": {
        "ko": ".grad가 비어 있는 파라미터가 있습니다. backward()를 불렀나요?",
        "en": "some parameters have no .grad: was backward() called?",
    },
    "not_divided": {
        "ko": "그래디언트가 정확히 {number}배입니다. backward()는 평균이 아니라 합을 쌓습니다",
        "en": "the gradient is exactly {number} times too large: backward() adds up, it takes no "
        "mean",
    },
    "off": {
        "ko": "전체 배치의 그래디언트와 {off} 다릅니다 (허용 0.0001%)",
        "en": "off by {off} from the gradient of the whole batch (allowed: 0.0001%)",
    },
    "too_large": {
        "ko": "활성화값이 마이크로배치 하나의 {ratio}배까지 쌓입니다. 그래프가 언제 해제되나요?",
        "en": "activations grow to {ratio} times those of one micro-batch: when is a graph freed?",
    },
}

ACCUMULATE = Exercise(
    id="09.accumulate",
    names=("accumulate",),
    checker=check_accumulate,
    num_ranks=1,
    cases={
        "gradient": {"ko": "전체 배치의 그래디언트", "en": "the gradient of the whole batch"},
        "loss": {"ko": "전체 배치의 평균 손실", "en": "the mean loss of the whole batch"},
        "memory": {
            "ko": "활성화값은 마이크로배치 하나만큼",
            "en": "activations of one micro-batch only",
        },
    },
    messages=_GRADIENT_MESSAGES,
    solution="""\
def accumulate(model, parts):
    total = 0.0
    for x, y in parts:
        loss = model(x, y) / len(parts)
        loss.backward()
        total += loss.item()
    return total
""",
    wrong=(
        # Not divided
        "def accumulate(model, parts):\n    total = 0.0\n    for x, y in parts:\n"
        "        loss = model(x, y)\n        loss.backward()\n        total += loss.item()\n"
        "    return total / len(parts)\n",
        # One backward at the end: all graphs live until then
        "def accumulate(model, parts):\n"
        "    loss = sum(model(x, y) for x, y in parts) / len(parts)\n"
        "    loss.backward()\n    return loss.item()\n",
        # Clears what it has added up
        "def accumulate(model, parts):\n    total = 0.0\n    for x, y in parts:\n"
        "        model.zero_grad()\n        loss = model(x, y) / len(parts)\n"
        "        loss.backward()\n        total += loss.item()\n    return total\n",
        # Returns the last micro-batch's loss
        "def accumulate(model, parts):\n    for x, y in parts:\n        loss = model(x, y)\n"
        "        (loss / len(parts)).backward()\n    return loss.item()\n",
    ),
    hints={
        "ko": (
            "backward()는 .grad를 덮어쓰지 않고 더합니다. 네 번 더한 것을 평균으로 만들려면?",
            "손실을 len(parts)로 나누고 바로 backward()를 부르세요. 그래프가 곧바로 해제됩니다.",
        ),
        "en": (
            "backward() adds to .grad, it does not overwrite. How do four summands become a mean?",
            "Divide each loss by len(parts) and call backward() at once: that frees its graph.",
        ),
    },
)


# --- 09.tokens ----------------------------------------------------------------------------------

_CASES = {
    "equal": [[8], [8], [8]],
    "unequal": [[8, 8], [1, 2], [5, 3]],
    "rows": [[8, 8, 8], [2]],  # sizes differ as well
    "empty": [[8, 4], [0, 0], [3, 6]],
}


def check_tokens(token_gradients, rank, world_size):
    import torch
    import torch.nn.functional as F

    from dlcourse.training.accumulation import backward_by_tokens

    findings = []
    for case, lengths in _CASES.items():
        parts = _parts(lengths, seed=1)
        wanted, means, model, reference = (_gpt(2) for _ in range(4))
        x, y = map(torch.cat, zip(*parts, strict=True))
        loss = F.cross_entropy(wanted(x).flatten(0, 1), y.flatten())
        loss.backward()
        for x, y in parts:
            if (y >= 0).any():
                (means(x, y) / len(parts)).backward()
        with measured() as allowed:
            backward_by_tokens(reference, parts)
        with measured() as seen:
            got = token_gradients(model, parts)
        findings += _judge_tokens(case, _gradient(model), _gradient(wanted), _gradient(means))
        if math.isnan(as_number(got) or 0.0):
            findings.append(expect("loss", False, "nan"))
        else:
            findings.append(expect_close("loss", got, loss.item(), atol=TOLERANCE))
        if case == "equal":
            findings.append(_judge_memory(seen, allowed))
    return findings


def _judge_tokens(case, got, want, means):
    if got is None:
        return [expect(case, False, "no_gradient")]
    off = (got - want).norm() / want.norm()
    key = "mean_of_means" if (got - means).norm() < TOLERANCE * means.norm() else "off"
    return [expect(case, off < TOLERANCE, key, off=f"{100 * off:.3g}%")]


TOKENS = Exercise(
    id="09.tokens",
    names=("token_gradients",),
    checker=check_tokens,
    num_ranks=1,
    cases={
        "equal": {"ko": "타깃 수가 같을 때", "en": "equal numbers of targets"},
        "unequal": {"ko": "타깃 수가 다를 때", "en": "different numbers of targets"},
        "rows": {"ko": "시퀀스 수도 다를 때", "en": "different numbers of sequences, too"},
        "empty": {
            "ko": "타깃이 하나도 없는 마이크로배치",
            "en": "a micro-batch without any target",
        },
        "loss": {"ko": "모든 타깃의 평균 손실", "en": "the mean loss over all targets"},
        "memory": {
            "ko": "활성화값은 마이크로배치 하나만큼",
            "en": "activations of one micro-batch only",
        },
    },
    messages=_GRADIENT_MESSAGES
    | {
        "mean_of_means": {
            "ko": "평균의 평균입니다 ({off} 다름). 짧은 마이크로배치의 타깃이 더 크게 세어졌습니다",
            "en": "that is a mean of means (off by {off}): targets of short micro-batches count "
            "for more",
        },
        "nan": {
            "ko": "손실이 nan입니다. 타깃이 0개인 평균은 0 나누기 0입니다",
            "en": "the loss is nan: a mean over 0 targets is 0 divided by 0",
        },
    },
    solution="""\
def token_gradients(model, parts):
    count = sum((y != -100).sum() for x, y in parts)
    total = 0.0
    for x, y in parts:
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / count
        loss.backward()
        total += loss.item()
    return total
""",
    wrong=(
        # Mean of means
        "def token_gradients(model, parts):\n    total = 0.0\n    for x, y in parts:\n"
        "        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) / len(parts)\n"
        "        loss.backward()\n        total += loss.item()\n    return total\n",
        # The mean, weighted: the loss is nan where there is none
        "def token_gradients(model, parts):\n    total = 0.0\n"
        "    count = sum((y != -100).sum() for x, y in parts)\n    for x, y in parts:\n"
        "        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())\n"
        "        loss = loss * (y != -100).sum() / count\n"
        "        loss.backward()\n        total += loss.item()\n    return total\n",
        # Counts the padding
        "def token_gradients(model, parts):\n    total = 0.0\n"
        "    count = sum(y.numel() for x, y in parts)\n"
        "    for x, y in parts:\n        logits = model(x).flatten(0, 1)\n"
        '        loss = F.cross_entropy(logits, y.flatten(), reduction="sum") / count\n'
        "        loss.backward()\n        total += loss.item()\n    return total\n",
        # All in one piece
        "def token_gradients(model, parts):\n"
        "    x, y = (torch.cat(halves) for halves in zip(*parts))\n"
        "    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())\n"
        "    loss.backward()\n    return loss.item()\n",
    ),
    hints={
        "ko": (
            "모든 타깃의 평균은 모든 손실의 합을 타깃의 개수로 나눈 값입니다.",
            '먼저 개수를 세고(y != -100), reduction="sum"으로 구한 손실을 그 수로 나누세요.',
        ),
        "en": (
            "The mean over all targets is the sum of all their losses, divided by their number.",
            'Count first (y != -100). Then divide each reduction="sum" loss by that number.',
        ),
    },
)


# --- 09.ddp -------------------------------------------------------------------------------------

_LR, _LIMIT = 0.5, 0.5  # the first gradient is above the limit, a third of it is below


def check_ddp(train_step, rank, world_size):
    import torch
    from torch.nn.parallel import DistributedDataParallel

    same = [[[8, 8]] * 3] * world_size
    tokens = [[[8 - 3 * r, 8], [2 + r, 0]] for r in range(world_size)]
    numbers = [[[8, 5]] * (3 - r) for r in range(world_size)]  # of micro-batches: 3, 2, 1
    findings = []
    for case, lengths in (("same", same), ("tokens", tokens), ("numbers", numbers)):
        steps = [
            [_parts(of_rank, seed=100 * step + r) for r, of_rank in enumerate(lengths)]
            for step in range(4)
        ]
        gpt = _gpt(3)
        ddp = DistributedDataParallel(gpt)
        optimizer = torch.optim.SGD(gpt.parameters(), lr=_LR)
        for parts in steps[:3]:
            train_step(ddp, parts[rank], optimizer)
        with measured() as seen:
            train_step(ddp, steps[3][rank], optimizer)
        findings += _judge_training(case, gpt, steps)
        if case == "same":
            minimum = 2 * (world_size - 1) / world_size * 8 * (gpt.num_parameters() + 1)
            sent = expect_sent("bytes", seen, minimum=minimum, key="often")
            findings.append(sent)
            if not sent["ok"]:
                break  # ranks with different numbers of micro-batches would wait for ever
    return findings


def _judge_training(case, gpt, steps):
    import torch

    state, want = _flat(gpt), _trained_alone(steps)
    first = torch.tensor(gathered(state.tolist())[0], dtype=state.dtype)
    drift = largest((state - first).abs().max())  # the ranks tell the same
    apart = largest((state - want).abs().max())
    if drift > 0:
        return [expect("replicas", False, "drift", off=f"{drift:.2g}")]
    key = "right" if apart < TOLERANCE else _mistake(state, steps)
    off = f"{apart:.2g}"
    return [expect("replicas", True), expect(case, key == "right", key, off=off)]


def _mistake(state, steps):
    """Which of the usual mistakes gives these very parameters."""
    for mistake in ("own_targets", "mean_of_parts", "divided_twice", "not_clipped"):
        if (state - _trained_alone(steps, mistake)).abs().max() < TOLERANCE:
            return mistake
    return "far_from_one"


def _trained_alone(steps, mistake=""):
    """Parameters after the same steps in one process, which has the micro-batches of all ranks."""
    import torch
    from torch import nn

    model = _gpt(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR)
    for of_ranks in steps:
        optimizer.zero_grad()
        if mistake == "own_targets":
            loss = sum(_mean_loss(model, parts) for parts in of_ranks) / len(of_ranks)
        elif mistake == "mean_of_parts":
            means = [[_mean_loss(model, [part]) for part in parts] for parts in of_ranks]
            loss = sum(sum(mean) / len(mean) for mean in means) / len(of_ranks)
        else:
            loss = _mean_loss(model, [part for parts in of_ranks for part in parts])
        (loss / len(of_ranks) if mistake == "divided_twice" else loss).backward()
        if mistake != "not_clipped":
            nn.utils.clip_grad_norm_(model.parameters(), _LIMIT)
        optimizer.step()
    return _flat(model)


def _mean_loss(model, parts):
    import torch
    import torch.nn.functional as F

    x, y = (torch.cat(halves) for halves in zip(*parts, strict=True))
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def _flat(model):
    import torch

    return torch.cat([p.detach().flatten() for p in model.parameters()])


_STEP = """\
def train_step(ddp, parts, optimizer):
    optimizer.zero_grad()
    count = sum((y != -100).sum() for x, y in parts)
    dist.all_reduce(count)
    for number, (x, y) in enumerate(parts, start=1):
        with nullcontext() if number == len(parts) else ddp.no_sync():
            loss = F.cross_entropy(ddp(x).flatten(0, 1), y.flatten(), reduction="sum")
            (loss * world_size / count).backward()
    nn.utils.clip_grad_norm_(ddp.parameters(), 0.5)
    optimizer.step()
"""
_IMPORT = "from contextlib import nullcontext\n\n\n"

DDP = Exercise(
    id="09.ddp",
    names=("train_step",),
    checker=check_ddp,
    num_ranks=3,
    time_limit=60.0,
    cases={
        "replicas": {"ko": "랭크끼리 파라미터가 같음", "en": "the ranks keep equal parameters"},
        "same": {
            "ko": "크기가 같을 때 단일 프로세스와 같음",
            "en": "equal sizes: equal to one process",
        },
        "bytes": {
            "ko": "그래디언트를 스텝마다 한 번만 보냄",
            "en": "gradients sent once a step",
        },
        "tokens": {
            "ko": "타깃 수가 다를 때 단일 프로세스와 같음",
            "en": "different numbers of targets: equal to one process",
        },
        "numbers": {
            "ko": "마이크로배치가 3, 2, 1개일 때 단일 프로세스와 같음",
            "en": "3, 2 and 1 micro-batches: equal to one process",
        },
    },
    messages={
        "often": {
            "ko": "보낸 양 {got}, 최소 {minimum}의 {ratio:.2g}배입니다. 마이크로배치는 3개이고, "
            "보낼지는 순전파에서 정해집니다",
            "en": "sends {got}, {ratio:.2g} times the minimum of {minimum}; there are 3 "
            "micro-batches, and the forward decides whether to send",
        },
        "drift": {
            "ko": "랭크끼리 최대 {off} 다릅니다. 마지막 마이크로배치는 순전파와 역전파 모두 "
            "no_sync() 밖에 있어야 합니다",
            "en": "they differ by up to {off}: forward and backward of the last micro-batch must "
            "be allowed to send",
        },
        "own_targets": {
            "ko": "파라미터가 최대 {off} 다릅니다. 랭크마다 자기 타깃 수로 나눈 결과와 똑같습니다. "
            "모든 랭크의 타깃 수로 나누어야 합니다",
            "en": "parameters are off by up to {off}, just as when each rank divides by its own "
            "number of targets: it takes that of all ranks",
        },
        "mean_of_parts": {
            "ko": "파라미터가 최대 {off} 다릅니다. 마이크로배치마다 평균을 낸 결과와 똑같습니다. "
            "평균의 평균은 안 됩니다",
            "en": "parameters are off by up to {off}, just as with a mean of the micro-batches' "
            "means",
        },
        "divided_twice": {
            "ko": "파라미터가 최대 {off} 다릅니다. 랭크 수로 한 번 더 나눈 결과와 똑같습니다. "
            "DDP가 이미 랭크 수로 나눕니다",
            "en": "parameters are off by up to {off}, just as with the loss divided by the number "
            "of ranks: DDP divides by it, too",
        },
        "not_clipped": {
            "ko": "파라미터가 최대 {off} 다릅니다. 그래디언트를 자르지 않은 결과와 똑같습니다",
            "en": "parameters are off by up to {off}, just as without clipping",
        },
        "far_from_one": {
            "ko": "파라미터가 최대 {off} 다릅니다 (허용 1e-6). 합이 끝난 다음에 한 번만 자르나요?",
            "en": "parameters are off by up to {off} (allowed: 1e-6). Is the gradient clipped "
            "once, when the sum is complete?",
        },
    },
    solution=_IMPORT + _STEP,
    wrong=(
        # Sends after every micro-batch
        _IMPORT
        + _STEP.replace(
            "nullcontext() if number == len(parts) else ddp.no_sync()", "nullcontext()"
        ),
        # no_sync around backward alone: DDP has decided in the forward
        _IMPORT
        + _STEP.replace(
            "        with nullcontext() if number == len(parts) else ddp.no_sync():\n"
            "            loss = F",
            "        loss = F",
        ).replace(
            "            (loss *",
            "        with nullcontext() if number == len(parts) else ddp.no_sync():\n"
            "            (loss *",
        ),
        # Never sends
        _IMPORT + _STEP.replace("nullcontext() if number == len(parts) else ", ""),
        # Divides by its own targets: a mean of means
        _IMPORT + _STEP.replace("    dist.all_reduce(count)\n", "").replace("* world_size ", ""),
        # Forgets that DDP divides by the number of ranks
        _IMPORT + _STEP.replace(" * world_size", ""),
        # Mean of the micro-batches' means
        _IMPORT
        + _STEP.replace('y.flatten(), reduction="sum")', "y.flatten())").replace(
            "loss * world_size / count", "loss / len(parts)"
        ),
        # Never clips
        _IMPORT + _STEP.replace("    nn.utils.clip_grad_norm_(ddp.parameters(), 0.5)\n", ""),
        # Clips the unfinished sum
        _IMPORT + _STEP.replace("    nn.utils", "            nn.utils"),
    ),
    hints={
        "ko": (
            "세 가지를 따로 생각하세요. 무엇으로 나눌지, 언제 보낼지, 언제 자를지입니다.",
            "타깃 수는 8바이트 올리듀스로 더하세요. DDP가 랭크 수로 나누니 world_size를 곱하세요.",
            "마지막이 아닌 마이크로배치는 순전파와 역전파를 모두 no_sync() 안에 두고, 자르기는 "
            "맨 끝에 한 번만 하세요.",
        ),
        "en": (
            "Three questions: what to divide by, when to send, when to clip.",
            "An all-reduce of the number of targets takes 8 bytes. DDP divides by the number of "
            "ranks, so multiply by world_size.",
            "Put forward and backward of all but the last micro-batch into no_sync(). Clip once, "
            "at the end.",
        ),
    },
)

EXERCISES = [ACCUMULATE, TOKENS, DDP]
