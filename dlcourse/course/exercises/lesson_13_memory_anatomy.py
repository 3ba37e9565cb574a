"""The exercises of lesson 13: bytes of states, the largest batch that fits, the best sets."""

from __future__ import annotations

from dlcourse.course.exercises import (
    Exercise,
    as_list,
    as_number,
    describe,
    expect,
)

# --- 13.states ----------------------------------------------------------------------------------


def check_states(bytes_a_parameter, rank, world_size):
    from dlcourse.formulas.states import state_bytes

    findings = []
    cases = {
        "one": [("float32", 0, 1), ("mixed", 0, 1), ("mixed", 0, 8)],
        "stage1": [("float32", 1, 4), ("mixed", 1, 4)],
        "stage2": [("float32", 2, 4), ("mixed", 2, 8)],
        "stage3": [("float32", 3, 4), ("mixed", 3, 64), ("mixed", 3, 1)],
    }
    for case, arguments in cases.items():
        for way, stage, ranks in arguments:
            answer = bytes_a_parameter(way, stage, ranks)
            got = as_number(answer)
            sizes = state_bytes(
                1,
                precision="master" if way == "mixed" else "float32",
                world_size=ranks,
                stage=stage,
            )
            want = sum(sizes.values())
            right = got is not None and abs(got - want) < 1e-6
            key = "off"
            if right or got is None:
                pass
            elif way == "mixed" and stage == 0 and got in (8, 12):
                key = "halved" if got == 8 else "masters"
            elif stage == 0 and ranks > 1 and got < want:
                key = "alone"
            elif abs(got - sum(sizes.values()) * ranks) < 1e-6 or got == 16:
                key = "whole"
            elif stage < 3 and abs(got - 16 / ranks) < 1e-6:
                key = "everything"
            values = {"way": way, "stage": stage, "ranks": ranks}
            shown = describe(answer) if got is None else f"{got:.4g}"
            values |= {"got": shown, "want": f"{want:.4g}"}
            findings.append(expect(case, right, key, **values))
            if not right:
                break
    return findings


_STATES = """\
def bytes_a_parameter(way, stage, ranks):
    p, g, s = (4, 4, 8) if way == "float32" else (2, 2, 12)
    if stage >= 1:
        s /= ranks
    if stage >= 2:
        g /= ranks
    if stage >= 3:
        p /= ranks
    return p + g + s
"""

STATES = Exercise(
    id="13.states",
    names=("bytes_a_parameter",),
    checker=check_states,
    num_ranks=1,
    where="kernel",
    cases={
        "one": {"ko": "ZeRO 없음", "en": "without ZeRO"},
        "stage1": {"ko": "ZeRO-1", "en": "ZeRO-1"},
        "stage2": {"ko": "ZeRO-2", "en": "ZeRO-2"},
        "stage3": {"ko": "ZeRO-3", "en": "ZeRO-3"},
    },
    messages={
        "off": {
            "ko": "{way}, 단계 {stage}, 랭크 {ranks}개: 나온 값 {got}, 맞는 값 {want}",
            "en": "{way}, stage {stage}, {ranks} ranks: got {got}, should be {want}",
        },
        "halved": {
            "ko": "혼합 정밀도에서도 상태는 절반이 되지 않습니다. 마스터 가중치와 모멘트 둘이 각각 "
            "4바이트입니다",
            "en": "mixed precision does not halve the states: the master and both moments take 4 "
            "bytes each",
        },
        "masters": {
            "ko": "혼합 정밀도에는 4바이트 마스터 가중치가 더 있습니다. 모멘트 둘만 세었습니다",
            "en": "mixed precision has a master weight of 4 bytes as well: only the two moments "
            "are counted",
        },
        "alone": {
            "ko": "{way}, 단계 0: 나온 값 {got}, 맞는 값 {want}. ZeRO가 없으면 랭크가 몇 개든 "
            "나뉘지 않습니다",
            "en": "{way}, stage 0: got {got}, should be {want}; without ZeRO nothing is divided, "
            "however many ranks there are",
        },
        "whole": {
            "ko": "단계 {stage}인데 아무것도 나누지 않았습니다",
            "en": "stage {stage}, and nothing is divided",
        },
        "everything": {
            "ko": "단계 {stage}는 아직 파라미터까지 나누지 않습니다",
            "en": "stage {stage} does not divide the parameters yet",
        },
    },
    solution=_STATES,
    wrong=(
        # The masters forgotten
        _STATES.replace("(2, 2, 12)", "(2, 2, 8)"),
        # Mixed precision taken for half of everything
        _STATES.replace("(2, 2, 12)", "(2, 2, 4)"),
        # Every stage divides everything
        "def bytes_a_parameter(way, stage, ranks):\n    return 16 / ranks if stage else 16\n",
        # Stages swapped: gradients before optimizer state
        _STATES.replace("        s /= ranks", "        g_ = ranks").replace(
            "        g /= ranks", "        g /= ranks\n        s /= ranks"
        ),
        "def bytes_a_parameter(way, stage, ranks):\n    return 16\n",
    ),
    hints={
        "ko": (
            "float32 AdamW는 4 + 4 + 8바이트입니다. 혼합 정밀도는 2 + 2 + 12바이트입니다.",
            "단계 1은 옵티마이저 상태를, 2는 그래디언트까지, 3은 파라미터까지 랭크 수로 나눕니다.",
        ),
        "en": (
            "AdamW in float32 takes 4 + 4 + 8 bytes. Mixed precision takes 2 + 2 + 12.",
            "Stage 1 divides optimizer state by the ranks, 2 gradients too, 3 parameters too.",
        ),
    },
)


# --- 13.batch -----------------------------------------------------------------------------------

CALLS = 25


def check_batch(largest, rank, world_size):
    from dlcourse.formulas.memory import predict_peak
    from dlcourse.formulas.recipe import Recipe
    from dlcourse.formulas.sizes import GPT2_LARGE, GPTConfig

    small = GPTConfig()

    def by_formula(config, recipe):
        return lambda n: sum(predict_peak(config, recipe, sequences=n, block=128).values())

    def stairs(n):  # an allocator that gives out memory in large pieces
        return 1000 * -(-n // 7) + 100

    cases = {
        "large": (by_formula(GPT2_LARGE, Recipe(precision="master")), 24e9),
        "small": (by_formula(small, Recipe(checkpoint=True)), 2e9),
        "stairs": (stairs, 5100),
        "exact": (lambda n: 100 + 50 * n, 100 + 50 * 12),
        "one": (lambda n: 100 + 50 * n, 150),
        "none": (by_formula(GPT2_LARGE, Recipe()), 10e9),
    }
    findings = []
    for case, (need, memory) in cases.items():
        asked = []

        def counted(n, need=need, asked=asked):
            if type(n) is not int or n < 1:
                raise ValueError(f"need({n!r}): give a whole number of 1 or more")
            asked.append(n)
            if len(asked) > 2000:
                raise ValueError("need() was called 2,000 times")
            return need(n)

        got = largest(counted, memory)
        calls = len(asked)
        if type(got) is not int or not 0 <= got < 10**9:
            findings.append(expect(case, False, "number", got=describe(got)))
            continue
        over = got > 0 and need(got) > memory
        more = need(got + 1) <= memory
        one_over = over and (got == 1 or need(got - 1) <= memory)
        key = "one_over" if one_over else "over" if over else "more" if more else "calls"
        values = {"got": got, "calls": calls, "limit": CALLS, "next": got + 1}
        findings.append(expect(case, not over and not more and calls <= CALLS, key, **values))
    return findings


_BATCH = """\
def largest(need, memory):
    low, high = 0, 1
    while need(high) <= memory:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if need(middle) <= memory:
            low = middle
        else:
            high = middle
    return low
"""

BATCH = Exercise(
    id="13.batch",
    names=("largest",),
    checker=check_batch,
    num_ranks=1,
    where="kernel",
    cases={
        "large": {"ko": "GPT-2 Large, 24 GB", "en": "GPT-2 Large, 24 GB"},
        "small": {"ko": "작은 GPT: 천 개 넘게 들어감", "en": "a small GPT: over a thousand fit"},
        "stairs": {"ko": "계단처럼 늘어나는 메모리", "en": "memory that grows in stairs"},
        "exact": {"ko": "딱 맞게 들어감", "en": "fits exactly"},
        "one": {"ko": "하나만 들어감", "en": "only one fits"},
        "none": {"ko": "하나도 들어가지 않음", "en": "not even one fits"},
    },
    messages={
        "number": {
            "ko": "돌려준 값이 {got}입니다. 0 이상의 int로 돌려주세요",
            "en": "it returned {got}: give an int from 0 on",
        },
        "one_over": {
            "ko": "{got}개는 한도를 넘고, 하나 적으면 들어갑니다. 들어가는 마지막 값을 돌려주세요",
            "en": "{got} is over the limit, one less is not: return the last that fits",
        },
        "over": {
            "ko": "{got}개는 한도를 넘습니다. 바닥 메모리(상태)를 잊지 않았나요?",
            "en": "{got} sequences are over the limit: was the floor, the states, forgotten?",
        },
        "more": {
            "ko": "{got}개라고 했지만 {next}개도 들어갑니다",
            "en": "it says {got}, but {next} fit as well",
        },
        "calls": {
            "ko": "답은 맞지만 need를 {calls}번 불렀습니다 (한도 {limit}번). 두 배씩 늘린 뒤 "
            "반씩 좁혀 보세요",
            "en": "right, but need was called {calls} times (at most {limit}): double first, then "
            "halve",
        },
    },
    solution=_BATCH,
    wrong=(
        # In proportion to one sequence
        "def largest(need, memory):\n    return int(memory // need(1))\n",
        # A line through two points
        "def largest(need, memory):\n"
        "    slope = need(2) - need(1)\n"
        "    return max(0, int((memory - need(1)) // max(slope, 1)) + 1)\n",
        # One by one
        "def largest(need, memory):\n"
        "    n = 0\n    while need(n + 1) <= memory:\n        n += 1\n    return n\n",
        # Powers of two only
        "def largest(need, memory):\n"
        "    n = 1\n    while need(n) <= memory:\n        n *= 2\n    return n // 2\n",
        _BATCH.replace("<= memory", "< memory"),
    ),
    hints={
        "ko": (
            "need(1)로 나누면 안 됩니다. 상태는 시퀀스 수와 상관없이 늘 있습니다.",
            "들어가지 않을 때까지 n을 두 배로 늘리면 답은 마지막 두 값 사이에 있습니다.",
            "그 사이를 반씩 좁히세요: low는 들어가고 high는 들어가지 않게 유지합니다.",
        ),
        "en": (
            "Do not divide by need(1): the states are there whatever the number of sequences.",
            "Double n until it does not fit: the answer lies between the last two.",
            "Halve that range: keep a low that fits and a high that does not.",
        ),
    },
)


# --- 13.order -----------------------------------------------------------------------------------


def check_order(best_sets, rank, world_size):
    import random

    from dlcourse.formulas.sizes import GPT2_LARGE
    from dlcourse.plan.technique_order import Prices, pareto_front
    from dlcourse.plan.technique_sets import plans

    def answer(triples):
        found = []
        for names, peak, seconds in sorted(triples, key=lambda p: (p[2], p[1], len(p[0]))):
            if not found or peak < found[-1][1]:
                found.append((names, peak, seconds))
        return [names for names, *_ in found]

    def of(bandwidth):
        prices = Prices(flops=1e14, flops16=2e14, bandwidth=bandwidth, per_pass=1e-3)
        every = plans(GPT2_LARGE, sequences=8, block=1024, world_size=4)
        triples = [(p.techniques, p.peak, prices.seconds(p)) for p in every]
        assert answer(triples) == [p.techniques for p in pareto_front(every, prices)]
        return triples

    ties = [((), 9, 2.0), (("mixed",), 9, 1.0), (("zero1",), 5, 1.0), (("mixed", "zero1"), 5, 1.0)]
    cases = {
        "few": [((), 100, 1.0), (("checkpoint",), 40, 1.3), (("accumulate",), 60, 1.1)],
        "useless": [((), 100, 1.0), (("mixed",), 70, 0.6), (("checkpoint",), 80, 1.3)],
        "ties": ties,
        "nvlink": of(3e11),
        "network": of(3e9),
    }
    findings = []
    for case, triples in cases.items():
        shuffled = random.Random(1).sample(triples, len(triples))
        got = best_sets(shuffled)
        want = answer(triples)
        given, got = got, [as_list(names) for names in as_list(got) or [None]]
        if None in got or not all(isinstance(name, str) for names in got for name in names):
            findings.append(expect(case, False, "no_list", got=describe(given)))
            continue
        got = [tuple(names) for names in got]
        peak = {tuple(names): size for names, size, _ in triples}
        key, values = "differs", {"got": len(got), "want": len(want), "name": "–"}
        odd = [names for names in got if names not in want]
        missing = [names for names in want if names not in got]
        strange = [names for names in got if names not in peak]
        if strange:
            key, values["name"] = "unknown", repr(strange[0])[:40]
        elif len(set(got)) < len(got):
            key = "twice"
        elif odd:
            key, values["name"] = "never", " + ".join(odd[0]) or "()"
        elif missing:
            key, values["name"] = "missing", " + ".join(missing[0]) or "()"
        elif got != want:
            key = "sorted"
        findings.append(expect(case, got == want, key, **values))
    return findings


_ORDER = """\
def best_sets(plans):
    found, lowest = [], float("inf")
    for names, peak, seconds in sorted(plans, key=lambda p: (p[2], p[1], len(p[0]))):
        if peak < lowest:
            found.append(names)
            lowest = peak
    return found
"""

ORDER = Exercise(
    id="13.order",
    names=("best_sets",),
    checker=check_order,
    num_ranks=1,
    where="kernel",
    cases={
        "few": {"ko": "조합 셋", "en": "three sets"},
        "useless": {"ko": "느리면서 크기까지 한 조합", "en": "a set that is slower and larger"},
        "ties": {"ko": "같은 시간, 같은 메모리", "en": "equal times and peaks"},
        "nvlink": {"ko": "GPT-2 Large, 빠른 링크", "en": "GPT-2 Large, a fast link"},
        "network": {"ko": "GPT-2 Large, 느린 링크", "en": "GPT-2 Large, a slow link"},
    },
    messages={
        "no_list": {
            "ko": "기법 튜플의 리스트가 아닙니다: {got}",
            "en": "it returned {got}, not a list of tuples of techniques",
        },
        "differs": {
            "ko": "조합 {got}개가 나왔지만 {want}개여야 합니다",
            "en": "{got} sets, should be {want}",
        },
        "unknown": {
            "ko": "plans의 techniques에 없는 것이 있습니다: {name}",
            "en": "it holds {name}, which is the techniques of no plan",
        },
        "twice": {"ko": "같은 조합이 두 번 있습니다", "en": "it has a set twice"},
        "never": {
            "ko": "{name}: 어떤 한도에서도 고르지 않습니다. 그만큼 빠르면서 더 크지 않은 조합이 "
            "있습니다",
            "en": "{name} is best for no limit: another set is as fast, and no larger",
        },
        "missing": {
            "ko": "{name}: 이 조합이 가장 좋은 한도가 있습니다",
            "en": "{name} is missing: there is a limit for which it is best",
        },
        "sorted": {
            "ko": "순서가 다릅니다. 한도가 큰 쪽부터 담으세요",
            "en": "another order: begin with the largest limit",
        },
    },
    solution=_ORDER,
    wrong=(
        # Smallest first
        "def best_sets(plans):\n"
        "    return [names for names, *_ in sorted(plans, key=lambda p: p[1])]\n",
        # Fastest first, but nothing is left out
        "def best_sets(plans):\n"
        "    return [names for names, *_ in sorted(plans, key=lambda p: p[2])]\n",
        # Equal peaks kept
        _ORDER.replace("peak < lowest", "peak <= lowest"),
        # The recommended order, whatever the prices
        "def best_sets(plans):\n"
        "    order, found = ('mixed', 'accumulate', 'checkpoint', 'zero1'), []\n"
        "    known = {names for names, *_ in plans}\n"
        "    for n in range(len(order) + 1):\n"
        "        if order[:n] in known:\n"
        "            found.append(order[:n])\n"
        "    return found\n",
        "def best_sets(plans):\n    return [min(plans, key=lambda p: p[2])[0]]\n",
        # Whole plans, not their techniques
        _ORDER.replace("append(names)", "append((names, peak, seconds))"),
    ),
    hints={
        "ko": (
            "한도가 아주 크면 가장 빠른 조합이 답입니다. 다음 답은 언제 바뀌나요?",
            "빠른 것부터 줄을 세우고, 지금까지보다 메모리가 작을 때만 담으세요.",
            "시간이 같으면 메모리가 작은 것, 그것도 같으면 기법이 적은 것이 먼저입니다.",
        ),
        "en": (
            "With a very large limit the fastest set is best. When does the answer change?",
            "Line them up by time, and take one only if it needs less than all before it.",
            "Of equal times the smaller comes first, and of equal peaks the one with fewer names.",
        ),
    },
)

EXERCISES = [STATES, BATCH, ORDER]
