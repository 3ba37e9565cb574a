"""The exercises of lesson 05: micro-batches, a deadlock, 1F1B, and a schedule of one's own."""

from __future__ import annotations

from dlcourse.course.exercises import (
    Exercise,
    describe,
    expect,
    largest,
)

# --- Shared: what is wrong with a schedule ------------------------------------------------------

SCHEDULE_CASES = {
    "complete": {
        "ko": "마이크로배치마다 F 한 번과 BW 한 번(또는 B와 W)",
        "en": "for each micro-batch one F and one BW (or one B and one W)",
    },
    "runs": {"ko": "교착 상태 없음", "en": "no deadlock"},
    "memory": {"ko": "랭크별 활성화값 제한", "en": "activations of each rank"},
    "time": {"ko": "걸리는 시간", "en": "time"},
    "same": {
        "ko": "실제 랭크에서 단일 프로세스와 같은 그래디언트",
        "en": "gradients of one process, in real ranks",
    },
}
SCHEDULE_MESSAGES = {
    "not_lines": {
        "ko": "{got}: 랭크마다 한 줄씩, 문자열 {want}개를 담은 리스트여야 합니다",
        "en": "{got}: give a list of {want} lines, one string for each rank",
    },
    "said": {"ko": "simulate의 설명: {text}", "en": "simulate says: {text}"},
    "count": {
        "ko": "마이크로배치가 {got}개입니다. {want}개여야 합니다",
        "en": "{got} micro-batches instead of {want}",
    },
    "too_many": {
        "ko": "{rank}번 랭크가 활성화값을 {got}개까지 듭니다. 제한은 {limit}개입니다",
        "en": "rank {rank} holds up to {got} activations; at most {limit} are allowed",
    },
    "too_long": {
        "ko": "{got}단위가 걸리고 그중 {idle}가 유휴 시간입니다. {limit}단위 안에 끝내야 합니다",
        "en": "takes {got} units and is idle for {idle} of them; the target is {limit} units",
    },
    "gradients": {
        "ko": "그래디언트가 단일 프로세스와 최대 {off}만큼 다릅니다",
        "en": "gradients differ from those of one process by up to {off}",
    },
}


def judge_schedule(lines, *, num_ranks, micro_batches, activations, total):
    """Findings on paper, and the schedule if it may be run."""
    from dlcourse.parallel.pipeline_schedules import Schedule
    from dlcourse.parallel.pipeline_simulation import simulate

    if (
        not isinstance(lines, list | tuple)
        or len(lines) != num_ranks
        or not all(isinstance(line, str) for line in lines)
    ):
        return [expect("complete", False, "not_lines", got=describe(lines), want=num_ranks)], None
    try:
        schedule = Schedule.parse(lines)
        gantt = simulate(schedule)
    except ValueError as error:
        text = "; ".join(line.strip() for line in str(error).split("\n")).replace(":;", ":")
        case = "runs" if "deadlocks" in text else "complete"
        findings = [] if case == "complete" else [expect("complete", True)]
        return [*findings, expect(case, False, "said", text=text)], None
    if (schedule.num_micro_batches, schedule.num_chunks) != (micro_batches, 1):
        got = schedule.num_micro_batches
        return [expect("complete", False, "count", got=got, want=micro_batches)], None
    findings = [expect("complete", True), expect("runs", True)]
    for rank, got in enumerate(gantt.peak_in_flight):
        if got > activations[rank]:
            limit = activations[rank]
            findings.append(expect("memory", False, "too_many", rank=rank, got=got, limit=limit))
            break
    else:
        findings.append(expect("memory", True))
    idle = f"{gantt.idle_over_total:.1%}"
    short = gantt.total <= total + 1e-9
    limit = f"{total:.4g}"
    findings.append(
        expect("time", short, "too_long", got=f"{gantt.total:g}", idle=idle, limit=limit)
    )
    return findings, schedule


def run_schedule(schedule):
    """Train one step with it in real ranks, in float64, and compare with one process."""
    import torch

    from dlcourse.models.gpt import GPT, GPTConfig
    from dlcourse.parallel.pipeline import PipelineParallel

    config = GPTConfig(n_layer=schedule.num_ranks, n_head=2, n_embd=16, block_size=8)
    alone, ours = GPT(config).double(), GPT(config).double()
    random = torch.Generator().manual_seed(0)
    batch = torch.randint(256, (2, schedule.num_micro_batches, 8), generator=random)
    alone(*batch).backward()
    pipeline = PipelineParallel(ours, schedule)
    pipeline.step(*batch)
    wanted = dict(alone.named_parameters())
    off = torch.zeros((), dtype=torch.float64)
    for stage in pipeline.stages:
        for name, parameter in stage.named_parameters():
            off = torch.maximum(off, (parameter.grad - wanted[name].grad).abs().max())
    apart = largest(off)  # the ranks tell the same
    return expect("same", apart < 1e-12, "gradients", off=f"{apart:.2g}")


# --- 05.micro_batches ---------------------------------------------------------------------------


def check_micro_batches(fewest, rank, world_size):
    from dlcourse.formulas.bubbles import idle_over_ideal, idle_over_total

    findings = []
    for case, p, limit in (
        ("few", 4, 0.5),
        ("many", 4, 0.1),
        ("exact", 5, 0.2),
        ("deep", 8, 0.03),
        ("alone", 1, 0.01),
    ):
        got = fewest(p, limit)
        want = next(m for m in range(1, 1000) if idle_over_total(p, m) <= limit + 1e-12)
        if type(got) is not int or got < 1:
            findings.append(expect(case, False, "not_a_number", got=describe(got)))
            continue
        idle = f"{idle_over_total(p, got):.1%}"
        values = {"p": p, "limit": f"{limit:.0%}", "got": got, "idle": idle}
        ideal = next(m for m in range(1, 10000) if idle_over_ideal(p, m) <= limit + 1e-12)
        key = "ideal" if got == ideal != want else "too_few" if got < want else "more_than_needed"
        findings.append(expect(case, got == want, key, **values))
    return findings


MICRO_BATCHES = Exercise(
    id="05.micro_batches",
    names=("fewest",),
    checker=check_micro_batches,
    num_ranks=1,
    cases={
        "few": {"ko": "랭크 4개, 50%까지", "en": "4 ranks, at most 50%"},
        "many": {"ko": "랭크 4개, 10%까지", "en": "4 ranks, at most 10%"},
        "exact": {"ko": "딱 맞게 떨어질 때 (랭크 5개, 20%)", "en": "exactly at it (5 ranks, 20%)"},
        "deep": {"ko": "랭크 8개, 3%까지", "en": "8 ranks, at most 3%"},
        "alone": {"ko": "랭크 1개", "en": "one rank"},
    },
    messages={
        "not_a_number": {
            "ko": "{got}: 1 이상의 정수(int)여야 합니다",
            "en": "{got}: give a whole number (int) of 1 or more",
        },
        "ideal": {
            "ko": "p={p}, limit={limit}: {got}개는 이상적인 시간으로 나눈 답입니다. 전체 시간으로 "
            "나누면 {idle}이므로 더 적어도 됩니다",
            "en": "p={p}, limit={limit}: {got} answers for idle over ideal time; of the total "
            "time it is {idle}, so fewer will do",
        },
        "too_few": {
            "ko": "p={p}, limit={limit}: {got}개면 전체 시간의 {idle}가 유휴 시간입니다",
            "en": "p={p}, limit={limit}: with {got} the ranks are idle for {idle}",
        },
        "more_than_needed": {
            "ko": "p={p}, limit={limit}: {got}개면 {idle}이고, 더 적어도 됩니다",
            "en": "p={p}, limit={limit}: with {got} it is {idle}; fewer will do",
        },
    },
    solution="""\
def fewest(p, limit):
    m = 1
    while (p - 1) / (m + p - 1) > limit:
        m += 1
    return m
""",
    wrong=(
        "def fewest(p, limit):\n    m = 1\n    while (p - 1) / m > limit:\n        m += 1\n"
        "    return m\n",
        "def fewest(p, limit):\n    m = 1\n    while (p - 1) / (m + p - 1) >= limit:\n"
        "        m += 1\n    return m\n",
        "def fewest(p, limit):\n    return int((p - 1) * (1 - limit) / limit)\n",
    ),
    hints={
        "ko": (
            "전체 시간에서 노는 비율은 (p-1) / (m+p-1)입니다.",
            "m을 1부터 하나씩 늘리며 처음으로 제한을 지키는 값을 찾으면 됩니다.",
        ),
        "en": (
            "The idle share of the total time is (p-1) / (m+p-1).",
            "Count m up from 1 until it is within the limit for the first time.",
        ),
    },
)


# --- 05.deadlock --------------------------------------------------------------------------------


def check_deadlock(repaired, rank, world_size):
    findings, schedule = judge_schedule(
        repaired(), num_ranks=3, micro_batches=4, activations=[3, 2, 1], total=18
    )
    return findings + ([] if schedule is None else [run_schedule(schedule)])


DEADLOCK = Exercise(
    id="05.deadlock",
    names=("repaired",),
    checker=check_deadlock,
    num_ranks=3,
    cases=SCHEDULE_CASES,
    messages=SCHEDULE_MESSAGES,
    solution="""\
def repaired():
    return [
        "F0 F1 F2 BW0 F3 BW1 BW2 BW3",
        "F0 F1 BW0 F2 BW1 F3 BW2 BW3",
        "F0 BW0 F1 BW1 F2 BW2 F3 BW3",
    ]
""",
    wrong=(
        # As it was
        'def repaired():\n    return ["F0 F1 BW0 F2 BW1 F3 BW2 BW3",\n'
        '            "F0 F1 F2 BW0 F3 BW1 BW2 BW3", "F0 BW0 F1 BW1 F2 BW2 F3 BW3"]\n',
        # GPipe: no deadlock, and all activations
        'def repaired():\n    return ["F0 F1 F2 F3 BW0 BW1 BW2 BW3"] * 3\n',
        # One micro-batch after the other: no deadlock, and slow
        'def repaired():\n    return ["F0 BW0 F1 BW1 F2 BW2 F3 BW3"] * 3\n',
        # Only rank 0 mended: rank 1 holds three
        'def repaired():\n    return ["F0 F1 F2 BW0 F3 BW1 BW2 BW3",\n'
        '            "F0 F1 F2 BW0 F3 BW1 BW2 BW3", "F0 BW0 F1 BW1 F2 BW2 F3 BW3"]\n',
        # Only rank 1 mended: it runs, and rank 0 feeds the others too late
        'def repaired():\n    return ["F0 F1 BW0 F2 BW1 F3 BW2 BW3",\n'
        '            "F0 F1 BW0 F2 BW1 F3 BW2 BW3", "F0 BW0 F1 BW1 F2 BW2 F3 BW3"]\n',
        # What hangs is left out
        'def repaired():\n    return ["F0 F1 F2 BW0 BW1 BW2"] * 3\n',
    ),
    hints={
        "ko": (
            "메시지를 보세요. 1번 랭크는 BW0보다 F2를 먼저 하려는데, 0번 랭크는 BW0 뒤에야 F2를 "
            "보냅니다.",
            "r번 랭크는 순전파를 2 - r번 먼저 하고, 그 뒤로는 F와 BW를 번갈아 합니다.",
            "두 줄을 고쳐야 합니다. 0번은 F를 하나 더 먼저, 1번은 하나 덜 먼저 합니다.",
        ),
        "en": (
            "Read the message: rank 1 wants F2 before its BW0, and rank 0 gives it after BW0.",
            "Rank r does 2 - r forwards first; from then on F and BW in turn.",
            "Two lines change: rank 0 does one F more before its first BW, and rank 1 one less.",
        ),
    },
)


# --- 05.one_f_one_b -----------------------------------------------------------------------------


def check_one_f_one_b(my_line, rank, world_size):
    findings = []
    for case, w, m in (("small", 2, 4), ("lesson", 4, 8), ("tight", 5, 5), ("alone", 1, 3)):
        lines = [my_line(r, w, m) for r in range(w)]
        found, _ = judge_schedule(
            lines,
            num_ranks=w,
            micro_batches=m,
            activations=[w - r for r in range(w)],
            total=3 * (m + w - 1),
        )
        bad = next((finding for finding in found if not finding["ok"]), None)
        findings.append(expect(case, True) if bad is None else {**bad, "case": case})
    return findings


ONE_F_ONE_B = Exercise(
    id="05.one_f_one_b",
    names=("my_line",),
    checker=check_one_f_one_b,
    num_ranks=1,
    cases={
        "small": {"ko": "랭크 2개, 마이크로배치 4개", "en": "2 ranks, 4 micro-batches"},
        "lesson": {"ko": "랭크 4개, 마이크로배치 8개", "en": "4 ranks, 8 micro-batches"},
        "tight": {"ko": "랭크 5개, 마이크로배치 5개", "en": "5 ranks, 5 micro-batches"},
        "alone": {"ko": "랭크 1개, 마이크로배치 3개", "en": "1 rank, 3 micro-batches"},
    },
    messages=SCHEDULE_MESSAGES,
    solution="""\
def my_line(rank, w, m):
    ahead = w - 1 - rank
    words = [f"F{i}" for i in range(ahead)]
    for i in range(m):
        if i + ahead < m:
            words.append(f"F{i + ahead}")
        words.append(f"BW{i}")
    return " ".join(words)
""",
    wrong=(
        # One forward too many in front: an activation too many
        "def my_line(rank, w, m):\n    ahead = w - rank\n"
        '    words = [f"F{i}" for i in range(ahead)]\n    for i in range(m):\n'
        '        if i + ahead < m:\n            words.append(f"F{i + ahead}")\n'
        '        words.append(f"BW{i}")\n    return " ".join(words)\n',
        # As many in all ranks
        "def my_line(rank, w, m):\n    ahead = w - 1\n"
        '    words = [f"F{i}" for i in range(ahead)]\n    for i in range(m):\n'
        '        if i + ahead < m:\n            words.append(f"F{i + ahead}")\n'
        '        words.append(f"BW{i}")\n    return " ".join(words)\n',
        # Upside down: deadlock
        "def my_line(rank, w, m):\n    ahead = rank\n"
        '    words = [f"F{i}" for i in range(ahead)]\n    for i in range(m):\n'
        '        if i + ahead < m:\n            words.append(f"F{i + ahead}")\n'
        '        words.append(f"BW{i}")\n    return " ".join(words)\n',
        'def my_line(rank, w, m):\n    return " ".join([f"F{i}" for i in range(m)]'
        ' + [f"BW{i}" for i in range(m)])\n',
        # The end is missing
        "def my_line(rank, w, m):\n    ahead = w - 1 - rank\n"
        '    words = [f"F{i}" for i in range(ahead)]\n    for i in range(m - ahead):\n'
        '        words += [f"F{i + ahead}", f"BW{i}"]\n    return " ".join(words)\n',
    ),
    hints={
        "ko": (
            "r번 랭크는 먼저 순전파를 w - 1 - r번 합니다. 마지막 랭크는 0번입니다.",
            "그다음에는 F와 BW를 번갈아 하고, F가 다 떨어지면 남은 BW만 합니다.",
        ),
        "en": (
            "Rank r begins with w - 1 - r forwards; the last rank with none.",
            "Then F and BW in turn; when no F is left, the remaining BW.",
        ),
    },
)


# --- 05.own -------------------------------------------------------------------------------------

LONGEST = 24 / (1 - 0.12)  # 8 micro-batches of 3 units are 88% of it


def check_own(my_schedule, rank, world_size):
    findings, schedule = judge_schedule(
        my_schedule(), num_ranks=4, micro_batches=8, activations=[4] * 4, total=LONGEST
    )
    return findings + ([] if schedule is None else [run_schedule(schedule)])


OWN = Exercise(
    id="05.own",
    names=("my_schedule",),
    checker=check_own,
    cases=SCHEDULE_CASES,
    messages=SCHEDULE_MESSAGES,
    solution="""\
def my_schedule():
    rows = []
    for rank in range(4):
        ahead, words = 3 - rank, [f"F{i}" for i in range(3 - rank)]
        for i in range(8):
            if i + ahead < 8:
                words.append(f"F{i + ahead}")
            words.append(f"B{i}")
            if i >= rank:
                words.append(f"W{i - rank}")
        rows.append(" ".join(words + [f"W{i}" for i in range(8 - rank, 8)]))
    return rows
""",
    wrong=(
        # One micro-batch after the other
        'def my_schedule():\n    row = " ".join(f"F{i} B{i} W{i}" for i in range(8))\n'
        "    return [row] * 4\n",
        # 1F1B, with W right behind B
        "def my_schedule():\n    rows = []\n    for rank in range(4):\n"
        '        words = [f"F{i}" for i in range(3 - rank)]\n        for i in range(8):\n'
        "            if i + 3 - rank < 8:\n"
        '                words.append(f"F{i + 3 - rank}")\n'
        '            words += [f"B{i}", f"W{i}"]\n        rows.append(" ".join(words))\n'
        "    return rows\n",
        # All W at the end: short, and every activation is kept
        "def my_schedule():\n    rows = []\n    for rank in range(4):\n"
        '        words = [f"F{i}" for i in range(3 - rank)]\n        for i in range(8):\n'
        "            if i + 3 - rank < 8:\n"
        '                words.append(f"F{i + 3 - rank}")\n'
        '            words.append(f"B{i}")\n'
        '        rows.append(" ".join(words + [f"W{i}" for i in range(8)]))\n'
        "    return rows\n",
        # W before its B
        'def my_schedule():\n    row = " ".join(f"F{i} W{i} B{i}" for i in range(8))\n'
        "    return [row] * 4\n",
        # Half the work
        'def my_schedule():\n    row = " ".join(f"F{i} B{i} W{i}" for i in range(4))\n'
        "    return [row] * 4\n",
    ),
    hints={
        "ko": (
            "1F1B의 목록에서 BW를 B와 W로 나누세요. B를 먼저 하면 앞 단계가 빨리 시작합니다.",
            "뒤쪽 랭크일수록 W를 더 미룰 수 있습니다. 활성화값을 4개까지 들어도 되기 때문입니다.",
            "r번 랭크에서는 W를 마이크로배치 r개만큼 늦추고, 남은 W는 맨 끝에서 하세요.",
        ),
        "en": (
            "Start from the lists of 1F1B and cut BW into B and W: the stage before gets B sooner.",
            "The later the rank, the longer W can wait, for it may hold 4 activations as well.",
            "In rank r let W come r micro-batches late, and do the W that are left at the end.",
        ),
    },
)

EXERCISES = [MICRO_BATCHES, DEADLOCK, ONE_F_ONE_B, OWN]
