"""Exercises of lesson 00: a sum, an uneven split, a mean, and a question to all ranks at once."""

from dlcourse.course.exercises import (
    Exercise,
    as_number,
    as_truth,
    describe,
    expect,
    expect_calls,
    expect_close,
    expect_sent,
    gathered,
    measured,
)

# -- 00.rank_sum --------------------------------------------------------------------------------


def check_rank_sum(rank_sum, rank, world_size):
    with measured() as seen:
        got = rank_sum(float(rank))
    other = rank_sum(2.5 * rank + 1)
    want = world_size * (world_size - 1) / 2
    return [
        expect_close("sum", got, want, atol=1e-4),
        expect_close("other", other, 2.5 * want + world_size, atol=1e-4),
        expect_calls("calls", seen, "all_reduce", 1),
    ]


RANK_SUM = Exercise(
    id="00.rank_sum",
    names=("rank_sum",),
    checker=check_rank_sum,
    cases={
        "sum": {"ko": "랭크 번호의 합", "en": "the sum of the ranks' numbers"},
        "other": {"ko": "다른 숫자로도", "en": "other numbers as well"},
        "calls": {"ko": "올리듀스 한 번", "en": "one all_reduce"},
    },
    solution="""\
def rank_sum(number):
    x = torch.tensor([number], device=device)
    dist.all_reduce(x)
    return x.item()
""",
    wrong=(
        # a formula instead of communication
        "def rank_sum(number):\n    return world_size * (world_size - 1) / 2\n",
        # all_reduce returns nothing: the sum is in x
        "def rank_sum(number):\n    x = torch.tensor([number])\n    return dist.all_reduce(x)\n",
        # its own number only
        "def rank_sum(number):\n    x = torch.tensor([number])\n    return x.sum().item()\n",
    ),
    hints={
        "ko": (
            "숫자를 텐서에 담아야 보낼 수 있습니다: torch.tensor([number], device=device)",
            "dist.all_reduce(x)는 아무것도 돌려주지 않습니다. 합은 x 안에 있습니다.",
        ),
        "en": (
            "Only tensors can be sent: torch.tensor([number], device=device)",
            "dist.all_reduce(x) returns nothing. The sum is in x afterwards.",
        ),
    },
)


# -- 00.own_slice -------------------------------------------------------------------------------


def check_own_slice(own_slice, rank, world_size):
    with measured() as seen:
        mine = {n: own_slice(n) for n in (8, 10, 2, 0)}
    findings = []
    for n, got in mine.items():
        pair = isinstance(got, tuple | list) and len(got) == 2
        pair = pair and all(isinstance(edge, int) for edge in got)
        pair = pair and all(edge.bit_length() < 64 for edge in got)
        everyone = gathered((pair, tuple(got) if pair else None))
        findings.append(expect("pair", pair, "no_pair", got=describe(got)))
        if not all(good for good, _ in everyone):
            continue
        owners = [0] * n
        for _, (start, stop) in everyone:
            for item in range(max(start, 0), min(stop, n)):
                owners[item] += 1
        outside = [edge for _, edges in everyone for edge in edges if not 0 <= edge <= n]
        lost = [item for item, count in enumerate(owners) if count == 0]
        twice = [item for item, count in enumerate(owners) if count > 1]
        sizes = [max(stop - start, 0) for _, (start, stop) in everyone]
        findings += [
            expect("all", not lost, "lost", n=n, items=lost),
            expect("once", not twice, "twice", n=n, items=twice),
            expect("range", not outside, "outside", n=n, edges=sorted(set(outside))),
            expect("even", max(sizes) - min(sizes) <= 1, "uneven", n=n, sizes=sizes),
        ]
    findings.append(expect("silent", not seen.calls(), "talks", calls=seen.calls()))
    return findings


OWN_SLICE = Exercise(
    id="00.own_slice",
    names=("own_slice",),
    checker=check_own_slice,
    cases={
        "pair": {"ko": "정수 두 개 (start, stop)", "en": "two integers (start, stop)"},
        "all": {"ko": "빠진 항목 없음", "en": "no item is left out"},
        "once": {"ko": "겹치는 항목 없음", "en": "no item has two owners"},
        "range": {"ko": "0과 n 사이", "en": "between 0 and n"},
        "even": {"ko": "크기 차이는 하나까지", "en": "sizes differ by one at most"},
        "silent": {"ko": "통신 없이", "en": "without communication"},
    },
    messages={
        "no_pair": {"ko": "돌려준 값: {got}", "en": "returned {got}"},
        "lost": {
            "ko": "n={n}일 때 {items}번 항목을 아무 랭크도 맡지 않습니다",
            "en": "for n={n}, no rank has items {items}",
        },
        "twice": {
            "ko": "n={n}일 때 {items}번 항목을 두 랭크 이상이 맡습니다",
            "en": "for n={n}, more than one rank has items {items}",
        },
        "outside": {
            "ko": "n={n}일 때 start나 stop이 {edges}입니다. 0보다 작거나 n보다 큽니다",
            "en": "for n={n}, start or stop is {edges}: below 0 or above n",
        },
        "uneven": {
            "ko": "n={n}일 때 랭크별 크기가 {sizes}입니다. 가장 큰 랭크를 모두가 기다립니다",
            "en": "for n={n} the sizes are {sizes}: everyone waits for the largest",
        },
        "talks": {
            "ko": "집합 통신을 {calls}번 불렀습니다. rank와 world_size만으로 알 수 있습니다",
            "en": "{calls} collectives were called; rank and world_size are enough",
        },
    },
    solution="""\
def own_slice(n):
    share, rest = divmod(n, world_size)
    start = rank * share + min(rank, rest)
    return start, start + share + (rank < rest)
""",
    wrong=(
        # drops the remainder
        "def own_slice(n):\n    k = n // world_size\n    return rank * k, (rank + 1) * k\n",
        # the last rank takes all of the remainder
        "def own_slice(n):\n    k = n // world_size\n"
        "    return rank * k, n if rank == world_size - 1 else (rank + 1) * k\n",
        # rounded up, as torch.chunk does: 3, 3, 3, 1
        "def own_slice(n):\n    k = -(-n // world_size)\n"
        "    return min(rank * k, n), min((rank + 1) * k, n)\n",
        # the right sizes in the wrong places
        "def own_slice(n):\n    share, rest = divmod(n, world_size)\n"
        "    start = rank * share\n    return start, start + share + (rank < rest)\n",
    ),
    hints={
        "ko": (
            "divmod(n, world_size)는 몫과 나머지를 줍니다. "
            "나머지만큼의 앞쪽 랭크가 하나씩 더 맡습니다.",
            "시작 위치: 앞 랭크들이 맡은 것을 모두 더합니다. rank * 몫 + min(rank, 나머지)",
        ),
        "en": (
            "divmod(n, world_size) gives share and rest. The first `rest` ranks take one more.",
            "The start is what earlier ranks took: rank * share + min(rank, rest)",
        ),
    },
)


# -- 00.mean_of_parts ---------------------------------------------------------------------------


def check_mean_of_parts(mean_of_parts, rank, world_size):
    import torch

    parts = [torch.arange(2.0 + 3 * r) + 10 * r for r in range(world_size)]
    with measured() as seen:
        got = mean_of_parts(parts[rank].clone())
    want = torch.cat(parts).mean().item()
    plain = sum(part.mean().item() for part in parts) / world_size
    value = as_number(got)
    trap = value is not None and abs(value - plain) < 1e-3
    ones = mean_of_parts(torch.full((5,), 3.0))
    parts[1] = torch.empty(0)
    empty = mean_of_parts(parts[rank].clone())
    first = (
        expect("mean", False, "mean_of_means", got=round(value, 4), want=round(want, 4))
        if trap
        else expect_close("mean", got, want, atol=1e-3)
    )
    return [
        first,
        expect_close("equal", ones, 3.0, atol=1e-4),
        expect_close("empty", empty, torch.cat(parts).mean().item(), atol=1e-3),
        expect("small", seen.calls() <= 1, "many", got=seen.calls()),
        expect_sent("bytes", seen, minimum=2 * (world_size - 1) / world_size * 16),
    ]


MEAN_OF_PARTS = Exercise(
    id="00.mean_of_parts",
    names=("mean_of_parts",),
    checker=check_mean_of_parts,
    cases={
        "mean": {"ko": "개수가 다를 때", "en": "unequal counts"},
        "equal": {"ko": "개수가 같을 때", "en": "equal counts"},
        "empty": {"ko": "값이 없는 랭크가 있을 때", "en": "a rank with no values"},
        "small": {"ko": "집합 통신은 한 번", "en": "one collective"},
        "bytes": {"ko": "보낸 바이트: 숫자 두 개만큼", "en": "bytes sent: two numbers' worth"},
    },
    messages={
        "mean_of_means": {
            "ko": "{got}: 평균들의 평균입니다. 모든 값의 평균: {want}",
            "en": "{got} is the mean of the means; the mean of all values is {want}",
        },
        "many": {
            "ko": "{got}번 불렀습니다. 합과 개수를 함께 보낼 수는 없을까요?",
            "en": "{got} were called: could sum and count travel together?",
        },
    },
    solution="""\
def mean_of_parts(values):
    both = torch.tensor([values.sum(), len(values)], device=device)
    dist.all_reduce(both)
    return (both[0] / both[1]).item()
""",
    wrong=(
        # the mean of the means
        "def mean_of_parts(values):\n    x = values.mean()\n    dist.all_reduce(x)\n"
        "    return (x / world_size).item()\n",
        # a rank without values stays away, and the others wait
        "def mean_of_parts(values):\n    if len(values) == 0:\n        return 0.0\n"
        "    both = torch.tensor([values.sum(), len(values)])\n    dist.all_reduce(both)\n"
        "    return (both[0] / both[1]).item()\n",
        # right, in two collectives
        "def mean_of_parts(values):\n    total = values.sum()\n"
        "    count = torch.tensor(float(len(values)))\n    dist.all_reduce(total)\n"
        "    dist.all_reduce(count)\n    return (total / count).item()\n",
        # all values to everyone
        "def mean_of_parts(values):\n    parts = [None] * world_size\n"
        "    dist.all_gather_object(parts, values)\n    return torch.cat(parts).mean().item()\n",
    ),
    hints={
        "ko": (
            "평균은 합 나누기 개수입니다. 랭크마다 개수가 다르면 무엇을 더해야 할까요?",
            "합과 개수를 한 텐서에 담으면 올리듀스 한 번이면 됩니다.",
            "값이 없는 랭크도 올리듀스를 불러야 합니다. 합 0, 개수 0을 보탭니다.",
        ),
        "en": (
            "A mean is a sum over a count. With unequal counts, what must be added up?",
            "Sum and count in one tensor need only one all_reduce.",
            "A rank without values must call all_reduce too: it adds sum 0 and count 0.",
        ),
    },
)


# -- 00.same_everywhere -------------------------------------------------------------------------


def check_same_everywhere(same_everywhere, rank, world_size):
    import torch

    base = torch.arange(10_000.0)
    x = base.clone()
    with measured() as seen:
        equal = same_everywhere(x)
    one_off = base + (rank == world_size - 1) * (base == 77) * 1e-3
    # The ranks' sum is world_size times the value of the ranks in the middle.
    balanced = base + (rank == 0) * 1.0 - (rank == world_size - 1) * 1.0
    before = balanced.clone()
    answers = {"one": same_everywhere(one_off), "balanced": same_everywhere(balanced)}
    said = {name: as_truth(got) for name, got in answers.items()}
    everyone = gathered(said)
    split = any(each != everyone[0] for each in everyone)
    missed = [
        expect(name, said[name] is False, "missed", got=describe(got))
        for name, got in answers.items()
    ]
    size = base.nbytes
    return [
        expect_close("equal", equal, True),
        *missed,
        expect("agree", not split, "split"),
        expect("kept", torch.equal(x, base) and torch.equal(balanced, before), "changed"),
        expect_sent("bytes", seen, minimum=2 * (world_size - 1) / world_size * size),
    ]


SAME_EVERYWHERE = Exercise(
    id="00.same_everywhere",
    names=("same_everywhere",),
    checker=check_same_everywhere,
    cases={
        "equal": {"ko": "모두 같을 때 True", "en": "True where all are equal"},
        "one": {
            "ko": "한 랭크에서 값 하나가 조금 다를 때",
            "en": "one value of one rank is slightly off",
        },
        "balanced": {
            "ko": "차이가 서로 상쇄될 때",
            "en": "differences that cancel out",
        },
        "agree": {"ko": "모든 랭크의 답이 같음", "en": "all ranks give the same answer"},
        "kept": {"ko": "x는 그대로", "en": "x is left as it was"},
        "bytes": {
            "ko": "보낸 바이트: 올리듀스 한 번 이내",
            "en": "bytes sent: one all_reduce at most",
        },
    },
    messages={
        "missed": {
            "ko": "돌려준 값 {got}. 그런데 x는 랭크마다 같지 않습니다",
            "en": "returned {got}, but x is not the same in all ranks",
        },
        "split": {
            "ko": "랭크마다 답이 다릅니다. 이 답으로 if를 쓰면 일부 랭크만 집합 통신에 들어가서 "
            "모두 멈춥니다",
            "en": "the ranks disagree; an `if` on this answer would send only some of them "
            "into a collective",
        },
        "changed": {
            "ko": "x의 값이 바뀌었습니다. 집합 통신은 텐서를 덮어씁니다",
            "en": "x has changed: a collective overwrites its tensor",
        },
    },
    solution="""\
def same_everywhere(x):
    first = x.clone()
    dist.broadcast(first, src=0)
    different = torch.tensor(float(not torch.equal(x, first)), device=device)
    dist.all_reduce(different)
    return different.item() == 0
""",
    wrong=(
        # each rank answers for itself: rank 0 always says True
        "def same_everywhere(x):\n    first = x.clone()\n    dist.broadcast(first, src=0)\n"
        "    return torch.equal(x, first)\n",
        # compares with the mean: differences cancel out in the ranks in the middle
        "def same_everywhere(x):\n    total = x.clone()\n    dist.all_reduce(total)\n"
        "    return torch.equal(total / world_size, x)\n",
        # overwrites x
        "def same_everywhere(x):\n    mine = x.clone()\n    dist.broadcast(x, src=0)\n"
        "    different = torch.tensor(float(not torch.equal(x, mine)))\n"
        "    dist.all_reduce(different)\n    return different.item() == 0\n",
        # right, but sends twice as much as needed
        "def same_everywhere(x):\n    low, high = x.clone(), x.clone()\n"
        "    dist.all_reduce(low, op=dist.ReduceOp.MIN)\n"
        "    dist.all_reduce(high, op=dist.ReduceOp.MAX)\n    return torch.equal(low, high)\n",
        # only the sums are compared: a small difference is lost in rounding
        "def same_everywhere(x):\n    low = x.sum()\n    high = low.clone()\n"
        "    dist.all_reduce(low, op=dist.ReduceOp.MIN)\n"
        "    dist.all_reduce(high, op=dist.ReduceOp.MAX)\n    return bool(low == high)\n",
    ),
    hints={
        "ko": (
            "기준이 하나 있으면 됩니다. dist.broadcast(t, src=0)는 랭크 0의 t를 모두에게 보냅니다.",
            "랭크는 자기 x가 기준과 다른지만 압니다. 랭크 0은 늘 같다고 답합니다. "
            "모든 랭크의 답을 모아야 합니다.",
            "'다르다'를 1, '같다'를 0으로 두고 올리듀스하면 다른 랭크의 수가 됩니다.",
        ),
        "en": (
            "One reference is enough: dist.broadcast(t, src=0) sends rank 0's t to everyone.",
            "A rank knows only whether its own x differs; rank 0 never does. Collect the answers.",
            "Let 1 mean different and 0 equal: all_reduce gives the number of ranks that differ.",
        ),
    },
)

EXERCISES = [RANK_SUM, OWN_SLICE, MEAN_OF_PARTS, SAME_EVERYWHERE]
