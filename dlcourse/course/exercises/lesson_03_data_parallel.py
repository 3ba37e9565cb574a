"""The exercises of lesson 03: a mean, buckets, overlap, and a training loop with bugs in it."""

from __future__ import annotations

from dlcourse.course.exercises import (
    Exercise,
    as_list,
    as_number,
    describe,
    expect,
    expect_calls,
    expect_sent,
    gathered,
    largest,
    measured,
    not_number,
)

# --- 03.mean ------------------------------------------------------------------------------------


def check_mean(mean_over_ranks, rank, world_size):
    import math

    import torch

    def values(counts):
        """Whole numbers, so that no order of adding them rounds."""
        whole = torch.arange(float(sum(counts))) ** 2
        return whole, whole.split(counts)

    findings = []
    for case, counts in (("equal", [4, 4, 4]), ("unequal", [1, 5, 9]), ("empty", [0, 7, 2])):
        whole, parts = values(counts)
        with measured() as seen:
            got = mean_over_ranks(parts[rank].clone())
        want = whole.mean().item()
        answer, got = got, as_number(got)
        if got is None:
            findings.append(not_number(case, answer))
            continue
        of_means = sum(p.mean().item() if len(p) else math.nan for p in parts) / world_size
        both_nan = math.isnan(got) and math.isnan(of_means)
        same = both_nan or math.isclose(got, of_means, rel_tol=1e-5)
        right = math.isclose(got, want, rel_tol=1e-5)
        key = "mean_of_means" if same and not right else "value"
        findings.append(expect(case, right, key, got=f"{got:.5g}", want=f"{want:.5g}"))
        if case == "unequal":
            findings.append(expect_calls("calls", seen, "all_reduce", 1))
            share = 2 * (world_size - 1) / world_size
            findings.append(expect_sent("bytes", seen, minimum=share * 8, at_most=2.0))
    return findings


MEAN = Exercise(
    id="03.mean",
    names=("mean_over_ranks",),
    checker=check_mean,
    num_ranks=3,
    cases={
        "equal": {
            "ko": "값의 수가 모두 같을 때 (4, 4, 4개)",
            "en": "as many values each (4, 4, 4)",
        },
        "unequal": {"ko": "값의 수가 다를 때 (1, 5, 9개)", "en": "different numbers (1, 5, 9)"},
        "empty": {
            "ko": "값이 없는 랭크가 있을 때 (0, 7, 2개)",
            "en": "a rank without any (0, 7, 2)",
        },
        "calls": {"ko": "집합 통신 한 번", "en": "one collective"},
        "bytes": {"ko": "숫자 두 개만 보내기", "en": "two numbers sent, not more"},
    },
    messages={
        "mean_of_means": {
            "ko": "{got}은(는) 랭크별 평균을 다시 평균 낸 값입니다. 모든 값의 평균은 {want}입니다",
            "en": "{got} is the mean of the ranks' means; the mean of all values is {want}",
        },
    },
    solution="""\
def mean_over_ranks(x):
    total = torch.tensor([x.sum(), len(x)])
    dist.all_reduce(total)
    return total[0] / total[1]
""",
    wrong=(
        "def mean_over_ranks(x):\n    total = x.mean()\n    dist.all_reduce(total)\n"
        "    return total / world_size\n",
        "def mean_over_ranks(x):\n    total = torch.tensor([x.sum(), len(x)])\n"
        "    dist.all_reduce(total)\n    return total[0] / (len(x) * world_size)\n",
        "def mean_over_ranks(x):\n    total, count = x.sum(), torch.tensor(len(x))\n"
        "    dist.all_reduce(total)\n    dist.all_reduce(count)\n    return total / count\n",
        "def mean_over_ranks(x):\n    rows = torch.zeros(world_size, 16)\n"
        "    rows[rank, :len(x)], rows[rank, 15] = x, len(x)\n    dist.all_reduce(rows)\n"
        "    return rows[:, :15].sum() / rows[:, 15].sum()\n",
    ),
    hints={
        "ko": (
            "평균은 합을 개수로 나눈 값입니다. 랭크마다 무엇을 알아야 할까요?",
            "합과 개수를 텐서 하나에 담으면 올리듀스 한 번으로 끝납니다.",
        ),
        "en": (
            "A mean is a sum divided by a count. What does each rank have to know?",
            "Put the sum and the count into one tensor: one all-reduce is enough.",
        ),
    },
)


# --- 03.buckets ---------------------------------------------------------------------------------


def check_buckets(assign, rank, world_size):
    from dlcourse.models.gpt import GPT, GPTConfig

    gpt = [p.nbytes for p in GPT(GPTConfig(n_layer=2, n_embd=64)).parameters()]
    jobs = [
        ([10, 20, 30, 40, 50], 60),
        ([30, 30, 30, 30], 60),
        ([5, 500, 5, 5], 100),  # one parameter is larger than a bucket
        ([5, 5, 500], 100),
        ([7], 100),
        (gpt, 64 * 1024),
    ]
    findings = [finding for sizes, cap in jobs for finding in _judge_buckets(assign, sizes, cap)]
    told, kept = set(), []
    for finding in findings:  # of each case the first and smallest example of what is wrong
        if finding["ok"] or finding["case"] not in told:
            kept.append(finding)
            told |= set() if finding["ok"] else {finding["case"]}
    return kept


def _judge_buckets(assign, sizes, cap):
    got = assign(list(sizes), cap)
    buckets = [as_list(bucket) for bucket in as_list(got) or [None]]
    flat = [position for bucket in buckets for position in bucket or []]
    if None in buckets or not all(type(p) is int and 0 <= p < len(sizes) for p in flat):
        values = {"got": describe(got), "last": len(sizes) - 1}
        return [expect("once", False, "not_positions", **values)]
    shown = _shown(sizes)
    missing = sorted(set(range(len(sizes))) - set(flat))
    twice = sorted({p for p in flat if flat.count(p) > 1})
    if missing or twice:
        key = "missing" if missing else "twice"
        return [expect("once", False, key, which=(missing or twice)[0], sizes=shown, cap=cap)]
    findings = [expect("once", True)]
    turned = next((i for i, p in enumerate(flat) if p != len(sizes) - 1 - i), None)
    if turned is not None:
        bucket = next(i for i, b in enumerate(buckets) if flat[turned] in b)
        ready = 1 + max(len(sizes) - 1 - p for p in buckets[bucket])
        findings.append(
            expect(
                "order", False, "late", bucket=bucket, ready=ready, count=len(sizes), sizes=shown
            )
        )
    else:
        findings.append(expect("order", True))
    for number, bucket in enumerate(buckets):
        total = sum(sizes[p] for p in bucket)
        if total > cap and len(bucket) > 1:
            findings.append(
                expect("cap", False, "over", bucket=number, got=total, cap=cap, sizes=shown)
            )
            break
    else:
        findings.append(expect("cap", True))
    fewest = len(_solved(sizes, cap))
    few = len(buckets) <= fewest and all(buckets)
    values = {"got": len(buckets), "want": fewest, "sizes": shown, "cap": cap}
    findings.append(expect("calls", few, "many", **values))
    return findings


def _solved(sizes, cap):
    buckets, filled = [[]], 0
    for position in reversed(range(len(sizes))):
        if buckets[-1] and filled + sizes[position] > cap:
            buckets.append([])
            filled = 0
        buckets[-1].append(position)
        filled += sizes[position]
    return buckets


def _shown(sizes):
    return str(sizes) if len(sizes) <= 8 else f"[{sizes[0]}, {sizes[1]}, …] ({len(sizes)})"


BUCKETS = Exercise(
    id="03.buckets",
    names=("assign",),
    checker=check_buckets,
    num_ranks=1,
    cases={
        "once": {"ko": "모든 파라미터가 한 번씩", "en": "every parameter once"},
        "order": {"ko": "역전파가 끝내는 순서대로", "en": "in the order in which backward ends"},
        "cap": {"ko": "버킷 크기 제한", "en": "no bucket over the cap"},
        "calls": {"ko": "가장 적은 버킷 수", "en": "as few buckets as can be"},
    },
    messages={
        "not_positions": {
            "ko": "{got}: 0부터 {last}까지의 정수를 담은 리스트의 리스트여야 합니다",
            "en": "{got}: give a list of lists of whole numbers from 0 to {last}",
        },
        "missing": {
            "ko": "sizes={sizes}, cap={cap}에서 파라미터 {which}번이 빠졌습니다",
            "en": "sizes={sizes}, cap={cap}: parameter {which} is in no bucket",
        },
        "twice": {
            "ko": "sizes={sizes}, cap={cap}에서 파라미터 {which}번이 두 번 나옵니다",
            "en": "sizes={sizes}, cap={cap}: parameter {which} is there twice",
        },
        "late": {
            "ko": "sizes={sizes}: {bucket}번 버킷은 그래디언트 {count}개 가운데 {ready}개가 끝나야 "
            "출발할 수 있습니다. 마지막 파라미터부터 채우세요",
            "en": "sizes={sizes}: bucket {bucket} cannot leave before {ready} of {count} gradients "
            "are done; fill from the last parameter on",
        },
        "over": {
            "ko": "sizes={sizes}: {bucket}번 버킷이 {got}바이트로 제한 {cap}바이트를 넘습니다",
            "en": "sizes={sizes}: bucket {bucket} holds {got} bytes, over the cap of {cap}",
        },
        "many": {
            "ko": "sizes={sizes}, cap={cap}: 버킷이 {got}개인데 {want}개면 충분합니다 "
            "(빈 버킷도 없어야 합니다)",
            "en": "sizes={sizes}, cap={cap}: {got} buckets, where {want} are enough "
            "(and none may be empty)",
        },
    },
    solution="""\
def assign(sizes, cap):
    buckets, filled = [[]], 0
    for position in reversed(range(len(sizes))):
        if buckets[-1] and filled + sizes[position] > cap:
            buckets.append([])
            filled = 0
        buckets[-1].append(position)
        filled += sizes[position]
    return buckets
""",
    wrong=(
        # From the front: the first bucket is the last one to be ready
        "def assign(sizes, cap):\n    buckets, filled = [[]], 0\n"
        "    for p, size in enumerate(sizes):\n"
        "        if buckets[-1] and filled + size > cap:\n"
        "            buckets.append([])\n            filled = 0\n"
        "        buckets[-1].append(p)\n        filled += size\n    return buckets\n",
        # Closed once it is over the cap, as DDP does
        "def assign(sizes, cap):\n    buckets, filled = [[]], 0\n"
        "    for p in reversed(range(len(sizes))):\n"
        "        if filled >= cap:\n            buckets.append([])\n            filled = 0\n"
        "        buckets[-1].append(p)\n        filled += sizes[p]\n    return buckets\n",
        # The last bucket is never closed
        "def assign(sizes, cap):\n    buckets, one = [], []\n"
        "    for p in reversed(range(len(sizes))):\n"
        "        if one and sum(sizes[q] for q in one) + sizes[p] > cap:\n"
        "            buckets.append(one)\n            one = []\n"
        "        one.append(p)\n    return buckets\n",
        "def assign(sizes, cap):\n    return [[p] for p in reversed(range(len(sizes)))]\n",
        # An empty bucket in front of a parameter that is too large
        "def assign(sizes, cap):\n    buckets, filled = [[]], 0\n"
        "    for p in reversed(range(len(sizes))):\n"
        "        if filled + sizes[p] > cap:\n            buckets.append([])\n"
        "            filled = 0\n        buckets[-1].append(p)\n        filled += sizes[p]\n"
        "    return buckets\n",
    ),
    hints={
        "ko": (
            "역전파는 마지막 파라미터의 그래디언트부터 끝냅니다. "
            "reversed(range(len(sizes)))로 도세요.",
            "새 파라미터를 넣으면 제한을 넘는지 먼저 보고, 넘으면 새 버킷을 여세요.",
            "지금 버킷이 비어 있다면 제한보다 큰 파라미터라도 그 버킷에 넣어야 합니다.",
        ),
        "en": (
            "Backward finishes the last parameter first: go through reversed(range(len(sizes))).",
            "Look first whether the next parameter would go over the cap; if so, open a bucket.",
            "Into an empty bucket a parameter goes in any case, even one larger than the cap.",
        ),
    },
)


# --- 03.overlap ---------------------------------------------------------------------------------

PATIENCE = 4  # seconds for which rank 0 holds its backward back


def check_overlap(Overlap, rank, world_size):
    import time
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from dlcourse.models.gpt import GPT, GPTConfig

    config = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=32)
    model, reference = GPT(config), GPT(config)
    backwards = [*reversed([*model.parameters()])]
    buckets = [backwards[i : i + 5] for i in range(0, len(backwards), 5)]
    overlap = Overlap(model, buckets)
    store = dist.distributed_c10d._get_default_store()
    sizes = [sum(p.nbytes for p in bucket) for bucket in buckets]
    findings = []
    for step in range(2):
        random = torch.Generator().manual_seed(10 * step + rank)
        tokens, targets = torch.randint(256, (2, 2, 16), generator=random)
        wanted = _mean_gradients(reference, tokens, targets, world_size)
        for parameter in model.parameters():
            parameter.grad = None
        with measured() as seen:
            loss = model(tokens, targets)
            if step == 0 and rank == 0:  # the others must not need this rank to end backward
                others = [f"03.overlap.ended.{r}" for r in range(1, world_size)]
                try:
                    store.wait(others, timedelta(seconds=PATIENCE))
                except RuntimeError:
                    store.set("03.overlap.blocked", "1")
                time.sleep(0.2)
                store.set("03.overlap.begun", "1")
            loss.backward()
            ended = time.monotonic_ns()
            if step == 0 and rank > 0:
                store.set(f"03.overlap.ended.{rank}", "1")
                free = not store.check(["03.overlap.blocked"])
                findings.append(expect("free", free, "blocked", seconds=PATIENCE))
            overlap.finish()
        findings.append(_judge_gradients(step, model, wanted, world_size))
        sent = [e for e in seen.comm if e["op"] == "all_reduce"]
        early = sum(e["bytes"] for e in sent if e["start_ns"] < ended)
        share = round(100 * early / sum(sizes))
        findings.append(expect("early", share >= 60, "too_late", share=share))
        few = len(sent) <= len(buckets)
        findings.append(expect("calls", few, "many", got=len(sent), want=len(buckets)))
    return findings


def _mean_gradients(model, tokens, targets, world_size):
    import torch.distributed as dist

    model.zero_grad()
    model(tokens, targets).backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    return {name: p.grad / world_size for name, p in model.named_parameters()}


def _judge_gradients(step, model, wanted, world_size):
    case = "again" if step else "mean"
    for name, parameter in model.named_parameters():
        want, got = wanted[name], parameter.grad
        if got is None:
            return expect(case, False, "no_gradient", name=name)
        # float32 sums over the ranks, in any order
        off, allowed = (got - want).abs().max().item(), 1e-5 * want.abs().max().item() + 1e-9
        if not off <= allowed:  # a NaN is neither
            summed = (got - world_size * want).abs().max().item() <= world_size * allowed
            key = "summed" if summed else "wrong_again" if step else "wrong"
            return expect(case, False, key, name=name, off=f"{off:.2g}", allowed=f"{allowed:.2g}")
    return expect(case, True)


OVERLAP = Exercise(
    id="03.overlap",
    names=("Overlap",),
    checker=check_overlap,
    num_ranks=3,
    time_limit=30.0,
    cases={
        "mean": {"ko": "첫 스텝의 그래디언트는 평균", "en": "gradients of step 1 are the mean"},
        "again": {"ko": "둘째 스텝도 마찬가지", "en": "and those of step 2"},
        "early": {
            "ko": "역전파가 끝나기 전에 보낸 바이트 60% 이상",
            "en": "at least 60% of the bytes leave before backward has ended",
        },
        "free": {
            "ko": "역전파는 다른 랭크를 기다리지 않음",
            "en": "backward waits for no other rank",
        },
        "calls": {"ko": "버킷마다 올리듀스 한 번", "en": "one all-reduce for each bucket"},
    },
    messages={
        "no_gradient": {
            "ko": "{name}: 그래디언트가 없습니다(None)",
            "en": "{name} has no gradient (None)",
        },
        "summed": {
            "ko": "{name}: 평균이 아니라 합입니다. world_size로 나누세요",
            "en": "{name} holds the sum, not the mean: divide by world_size",
        },
        "wrong": {
            "ko": "{name}: 평균과 최대 {off}만큼 다릅니다 (허용 {allowed}). 기다리지 않고 "
            "읽었거나, 버킷의 결과를 그래디언트로 되돌려 놓지 않았을 수 있습니다",
            "en": "{name} is off by up to {off} (allowed: {allowed}): read without waiting, or "
            "not copied back from its bucket?",
        },
        "wrong_again": {
            "ko": "{name}: 평균과 최대 {off}만큼 다릅니다 (허용 {allowed}). 첫 스텝이 맞았다면, 센 "
            "개수나 보낸 버킷이 남아 있는 것입니다. finish()에서 처음으로 되돌리세요",
            "en": "{name} is off by up to {off} (allowed: {allowed}); if step 1 was right, counts "
            "or sent buckets are left over from it: reset them in finish()",
        },
        "too_late": {
            "ko": "역전파가 끝나기 전에 보낸 것은 {share}%뿐입니다",
            "en": "only {share}% have left by then",
        },
        "blocked": {
            "ko": "0번 랭크가 역전파를 미루자 {seconds}초 동안 따라 멈췄습니다. 훅 안에서 기다리면 "
            "통신이 숨지 않습니다",
            "en": "stood still for {seconds} s while rank 0 held its backward back: a hook that "
            "waits hides nothing",
        },
        "many": {
            "ko": "한 스텝에 올리듀스 {got}번. 버킷은 {want}개입니다",
            "en": "{got} all-reduces in a step, for {want} buckets",
        },
    },
    solution="""\
class Overlap:
    def __init__(self, module, buckets):
        self.buckets, self.works = buckets, []
        self.missing = [len(bucket) for bucket in buckets]
        for number, bucket in enumerate(buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(
                    lambda _, number=number: self.ready(number)
                )

    def ready(self, number):
        self.missing[number] -= 1
        while len(self.works) < len(self.buckets) and not self.missing[len(self.works)]:
            bucket = self.buckets[len(self.works)]
            flat = torch.cat([p.grad.flatten() for p in bucket]) / world_size
            self.works.append((flat, dist.all_reduce(flat, async_op=True)))

    def finish(self):
        for bucket, (flat, work) in zip(self.buckets, self.works):
            work.wait()
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket])):
                parameter.grad = part.view_as(parameter)
        self.works, self.missing = [], [len(bucket) for bucket in self.buckets]
""",
    wrong=(
        # Everything after backward
        "class Overlap:\n    def __init__(self, module, buckets):\n        self.buckets = buckets\n"
        "    def finish(self):\n        for bucket in self.buckets:\n"
        "            flat = torch.cat([p.grad.flatten() for p in bucket]) / world_size\n"
        "            dist.all_reduce(flat)\n"
        "            for p, part in zip(bucket, flat.split([p.numel() for p in bucket])):\n"
        "                p.grad = part.view_as(p)\n",
        # Waits inside the hook
        "class Overlap:\n    def __init__(self, module, buckets):\n"
        "        self.buckets, self.left = buckets, [len(b) for b in buckets]\n"
        "        for i, b in enumerate(buckets):\n            for p in b:\n"
        "                p.register_post_accumulate_grad_hook(lambda _, i=i: self.ready(i))\n"
        "    def ready(self, i):\n        self.left[i] -= 1\n        if self.left[i]:\n"
        "            return\n        bucket = self.buckets[i]\n"
        "        flat = torch.cat([p.grad.flatten() for p in bucket]) / world_size\n"
        "        dist.all_reduce(flat, async_op=True).wait()\n"
        "        for p, part in zip(bucket, flat.split([p.numel() for p in bucket])):\n"
        "            p.grad = part.view_as(p)\n"
        "    def finish(self):\n        self.left = [len(b) for b in self.buckets]\n",
        # One message for each parameter
        "class Overlap:\n    def __init__(self, module, buckets):\n        self.works = []\n"
        "        for p in module.parameters():\n"
        "            p.register_post_accumulate_grad_hook(self.ready)\n"
        "    def ready(self, p):\n        p.grad /= world_size\n"
        "        self.works.append(dist.all_reduce(p.grad, async_op=True))\n"
        "    def finish(self):\n        for work in self.works:\n            work.wait()\n"
        "        self.works = []\n",
        # The sum, and nothing is reset for the second step
        "class Overlap:\n    def __init__(self, module, buckets):\n"
        "        self.buckets, self.left = buckets, [len(b) for b in buckets]\n"
        "        self.sent = []\n        for i, b in enumerate(buckets):\n            for p in b:\n"
        "                p.register_post_accumulate_grad_hook(lambda _, i=i: self.ready(i))\n"
        "    def ready(self, i):\n        self.left[i] -= 1\n        if self.left[i] == 0:\n"
        "            bucket = self.buckets[i]\n"
        "            flat = torch.cat([p.grad.flatten() for p in bucket])\n"
        "            work = dist.all_reduce(flat, async_op=True)\n"
        "            self.sent.append((bucket, flat, work))\n"
        "    def finish(self):\n        for bucket, flat, work in self.sent:\n"
        "            work.wait()\n"
        "            for p, part in zip(bucket, flat.split([p.numel() for p in bucket])):\n"
        "                p.grad = part.view_as(p)\n        self.sent = []\n",
        # Does not wait
        "class Overlap:\n    def __init__(self, module, buckets):\n"
        "        self.buckets, self.left = buckets, [len(b) for b in buckets]\n"
        "        self.sent = []\n        for i, b in enumerate(buckets):\n            for p in b:\n"
        "                p.register_post_accumulate_grad_hook(lambda _, i=i: self.ready(i))\n"
        "    def ready(self, i):\n        self.left[i] -= 1\n        if self.left[i] == 0:\n"
        "            bucket = self.buckets[i]\n"
        "            flat = torch.cat([p.grad.flatten() for p in bucket]) / world_size\n"
        "            dist.all_reduce(flat, async_op=True)\n"
        "            self.sent.append((bucket, flat.clone()))\n"
        "    def finish(self):\n        for bucket, flat in self.sent:\n"
        "            for p, part in zip(bucket, flat.split([p.numel() for p in bucket])):\n"
        "                p.grad = part.view_as(p)\n"
        "        self.sent, self.left = [], [len(b) for b in self.buckets]\n",
    ),
    hints={
        "ko": (
            "parameter.register_post_accumulate_grad_hook(f)는 그 파라미터의 .grad가 완성될 때 "
            "f(parameter)를 부릅니다.",
            "버킷마다 아직 오지 않은 그래디언트 수를 세고, 0이 되면 torch.cat으로 이어 붙여 "
            "dist.all_reduce(flat, async_op=True)를 부르세요. 돌려받은 work는 보관합니다.",
            "finish()에서 work.wait() 뒤에 flat을 나누어 .grad에 되돌려 놓고, 다음 스텝을 위해 "
            "개수를 처음으로 되돌리세요.",
        ),
        "en": (
            "parameter.register_post_accumulate_grad_hook(f) calls f(parameter) as soon as that "
            "parameter's .grad is complete.",
            "Count the gradients that each bucket still misses. At zero, join them by torch.cat "
            "and call dist.all_reduce(flat, async_op=True); keep the work that it returns.",
            "In finish(), after work.wait(), put the parts of flat back into .grad, and reset the "
            "counts for the next step.",
        ),
    },
)


# --- 03.find_the_bug ----------------------------------------------------------------------------

LIMIT = 1.0  # of the gradient's norm, as in the exercise's loop


def check_find_the_bug(train_ranks, rank, world_size):
    counts = [1 + 2 * r for r in range(world_size)]
    same = [4] * world_size
    # One step each; then several, in which one rank's loss goes up and the mean goes down
    large, uneven = [_rows(1, same, 20.0)], [_rows(2, counts, 0.1)]
    several = [_rows(7, same, 0.1, scale_of_last=1 + 0.3 * step) for step in range(6)]
    findings = []
    drift_at = None
    for steps in range(1, len(several) + 1):
        drift = _drift(_trained(train_ranks, several[:steps], rank))
        if drift > 1e-12:
            drift_at = (steps, drift)
            break
    values = {"step": drift_at[0], "off": f"{drift_at[1]:.2g}"} if drift_at else {}
    key = "start" if values.get("step") == 1 else "drift"
    findings.append(expect("replicas", drift_at is None, key, **values))
    for case, batches in (("large", large), ("uneven", uneven), ("several", several)):
        state = _trained(train_ranks, batches, rank)
        want = _alone(batches)
        apart = largest((state - want).abs().max())  # the ranks tell the same
        off = f"{apart:.2g}"
        findings.append(
            expect(case, apart < 1e-9, "far_from_one", off=off, counts=_counts(batches))
        )
    return findings


def _net():
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def _rows(seed, counts, size, scale_of_last=1.0):
    """One batch for each rank: lists of (x, y)."""
    import torch

    random = torch.Generator().manual_seed(seed)
    parts = []
    for rank, count in enumerate(counts):
        x = torch.randn(count, 3, generator=random, dtype=torch.float64)
        y = size * (x.sum(dim=1, keepdim=True) + 1)
        parts.append((x, y * (scale_of_last if rank == len(counts) - 1 else 1.0)))
    return parts


def _trained(train_ranks, batches, rank):
    """All parameters after the learner's loop, in one vector."""
    import torch

    model = _net()
    with torch.no_grad():
        for parameter in model.parameters():  # every rank starts elsewhere
            parameter += 0.01 * rank
    train_ranks(model, [parts[rank] for parts in batches], 0.1)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _alone(batches):
    """The same training in one process, with all ranks' rows in one batch."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for parts in batches:
        x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
        optimizer.step()
        scheduler.step(loss.item())
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _drift(state):
    import torch

    first = torch.tensor(gathered(state.tolist())[0], dtype=state.dtype)
    return largest((state - first).abs().max())


def _counts(batches):
    return ", ".join(str(len(y)) for _, y in batches[0])


_FIXED = """\
def train_ranks(model, batches, lr):
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for x, y in batches:
        optimizer.zero_grad()
        rows = torch.tensor(len(y))
        dist.all_reduce(rows)
        loss = F.mse_loss(model(x), y) * len(y) / rows
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss = loss.detach()
        dist.all_reduce(loss)
        scheduler.step(loss.item())
"""

FIND_THE_BUG = Exercise(
    id="03.find_the_bug",
    names=("train_ranks",),
    checker=check_find_the_bug,
    num_ranks=3,
    time_limit=30.0,
    cases={
        "replicas": {"ko": "랭크끼리 파라미터가 같음", "en": "the ranks keep equal parameters"},
        "large": {
            "ko": "그래디언트가 클 때 단일 프로세스와 같음",
            "en": "large gradients: equal to one process",
        },
        "uneven": {
            "ko": "행 수가 다를 때 단일 프로세스와 같음",
            "en": "different numbers of rows: equal to one process",
        },
        "several": {
            "ko": "한 랭크의 손실만 오를 때 단일 프로세스와 같음",
            "en": "one rank's loss rises: equal to one process",
        },
    },
    messages={
        "drift": {
            "ko": "스텝 {step}에서 처음으로 달라집니다 (최대 {off}). 그래디언트는 같은데 랭크마다 "
            "다르게 정하는 것이 또 있습니다",
            "en": "they first differ at step {step} (by up to {off}): the gradients are equal, so "
            "something else is decided by each rank alone",
        },
        "start": {
            "ko": "첫 스텝 뒤에 이미 다릅니다 (최대 {off}). 모두 같은 모델에서 출발하나요?",
            "en": "they differ after the first step already (by up to {off}): do all ranks start "
            "from the same model?",
        },
        "far_from_one": {
            "ko": "파라미터가 최대 {off}만큼 다릅니다 (랭크별 행 수 {counts}, 허용 1e-9)",
            "en": "parameters are off by up to {off} (rows by rank: {counts}; allowed: 1e-9)",
        },
    },
    solution=_FIXED,
    wrong=(
        # Clipping in the right place only
        """\
def train_ranks(model, batches, lr):
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step(loss.item())
""",
        # The drift is painted over: parameters are sent after each step
        _FIXED.replace(
            "        dist.all_reduce(loss)\n        scheduler.step(loss.item())\n",
            "        scheduler.step(loss.item())\n"
            "        for parameter in model.parameters():\n"
            "            dist.broadcast(parameter.data, 0)\n",
        ),
        # Mean of means
        _FIXED.replace("* len(y) / rows", "/ world_size"),
        # Clips what each rank has, before the sum
        _FIXED.replace("        nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n", "").replace(
            "        loss.backward()\n",
            "        loss.backward()\n        nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n",
        ),
        # Nobody starts from the same model
        _FIXED.replace("        dist.broadcast(parameter.data, 0)\n", "        pass\n"),
    ),
    hints={
        "ko": (
            "버그는 세 개입니다. 줄마다 물어보세요. 이 값은 한 랭크의 것인가요, 모두의 것인가요?",
            "학습률을 줄일지 말지 랭크마다 자기 손실을 보고 정합니다. 그래디언트를 자르는 것은 "
            "평균을 내기 전인가요, 후인가요?",
            "행이 더 많은 랭크는 더 크게 세야 합니다. 손실에 len(y) / (모든 랭크의 행 수)를 곱하고 "
            "그래디언트를 더하기만 하면 전체 평균이 됩니다.",
        ),
        "en": (
            "There are three bugs. Ask of every line: is this one rank's value, or everybody's?",
            "Each rank looks at its own loss to decide whether to lower the learning rate. And is "
            "the gradient clipped before the mean is taken, or after?",
            "A rank with more rows must count for more: multiply the loss by len(y) / (rows of all "
            "ranks), and the plain sum of the gradients is the mean over all rows.",
        ),
    },
)

EXERCISES = [MEAN, BUCKETS, OVERLAP, FIND_THE_BUG]
