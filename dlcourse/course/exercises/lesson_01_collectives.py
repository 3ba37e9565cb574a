"""Exercises of 01_collectives: collectives from point-to-point, within a number of bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from dlcourse.course.exercises.judging import (
    Finding,
    Measured,
    expect,
    expect_close,
    expect_equal,
    expect_sent,
    gathered,
    measured,
)
from dlcourse.course.exercises.registry import Exercise
from dlcourse.words.units import human_bytes

Message = tuple[str, int | None]  # ("send" | "recv", the other rank)

# --------------------------------------------------------------------------- what checkers share

_VALUES = {"ko": "값", "en": "the values"}
_BYTES = {"ko": "보낸 바이트", "en": "bytes sent"}
_UNCHANGED = {"ko": "입력이 그대로인지", "en": "the input stays as it is"}
_ROUNDS = {"ko": "라운드 수", "en": "number of rounds"}
_ONLY = {"ko": "send와 recv만 사용", "en": "only send and recv"}
_MESSAGES = {
    "changed": {"ko": "입력 텐서의 값이 바뀌었습니다", "en": "the input tensor has changed"},
    "other_calls": {
        "ko": "{calls} 호출이 있습니다. 점대점 통신으로 만들어 보세요",
        "en": "called {calls}: build it from point-to-point messages",
    },
    "backwards": {
        "ko": "오른쪽 이웃의 x가 왔습니다. 왼쪽 이웃의 x가 와야 합니다",
        "en": "this is the right neighbour's x; the left one's should come",
    },
    "blocks": {
        "ko": "조각은 맞는 자리에 왔지만, 조각 안의 행과 열이 바뀌지 않았습니다",
        "en": "the blocks are in the right places, but not transposed inside",
    },
    "order": {
        "ko": "조각은 다 왔지만 랭크 순서가 아닙니다",
        "en": "all parts are here, but not in rank order",
    },
    "no_rounds": {
        "ko": "받는 쪽이 없는 메시지나 보내는 쪽이 없는 메시지가 있습니다",
        "en": "some message has no sender or no receiver",
    },
    "rounds": {
        "ko": "{got}라운드가 걸렸습니다. {limit}라운드면 됩니다",
        "en": "it takes {got} rounds, and {limit} are enough",
    },
    "root": {
        "ko": "{got}번 보냈습니다. {limit}번이면 됩니다",
        "en": "sent {got} times, and {limit} are enough",
    },
    "wire": {
        "ko": "실제로 나간 양 {got}: 최소 {minimum}의 {ratio:.3g}배. "
        "부른 함수가 안에서 올리듀스를 하고 있지는 않나요?",
        "en": "{got} left this rank, {ratio:.3g} times the minimum of {minimum}. "
        "Is there an all-reduce inside what you call?",
    },
}


def messages_of(seen: Measured) -> list[Message]:
    """This rank's messages in the order in which they were sent, or had arrived."""

    def when(event: dict[str, Any]) -> int:
        end = event["end_ns"] if event["end_ns"] is not None else event["start_ns"]
        return event["start_ns"] if event["op"] == "send" else end

    messages = [e for e in seen.comm if e["op"] in ("send", "recv")]
    return [(e["op"], e["peer"]) for e in sorted(messages, key=when)]


def rounds(messages: Sequence[Sequence[Message]]) -> int | None:
    """Rounds that these messages of all ranks take, if a rank sends one in a round.

    A message that is sent in a rank's round k is there in round k + 1. None where a message has
    no sender or no receiver.
    """
    clocks = [0] * len(messages)
    left = [deque(own) for own in messages]
    under_way: dict[tuple[int, int | None], deque[int]] = {}
    moved = True
    while moved:
        moved = False
        for rank, own in enumerate(left):
            while own:
                op, peer = own[0]
                if op == "send":
                    clocks[rank] += 1
                    under_way.setdefault((rank, peer), deque()).append(clocks[rank])
                elif under_way.get((peer, rank)):  # type: ignore[arg-type]
                    clocks[rank] = max(clocks[rank], under_way[(peer, rank)].popleft())  # type: ignore[index]
                else:
                    break
                own.popleft()
                moved = True
    done = not any(left) and not any(under_way.values())
    return max(clocks, default=0) if done else None


def expect_rounds(case: str, seen: Measured, limit: int) -> Finding:
    """All ranks' messages fit into `limit` rounds. A collective: every rank must call it."""
    got = rounds(gathered(messages_of(seen)))
    if got is None:
        return expect(case, False, "no_rounds")
    return expect(case, got <= limit, "rounds", got=got, limit=limit)


def expect_only_messages(case: str, seen: Measured) -> Finding:
    others = sorted({e["op"] for e in seen.comm} - {"send", "recv"})
    return expect(case, not others, "other_calls", calls=", ".join(others))


def expect_values(case: str, got: Any, want: Any, mistake: str, looks_like: Any) -> Finding:
    """Equal to `want`; a result that equals `looks_like` is a known mistake, told by its name."""
    import torch

    finding = expect_equal(case, got, want)
    known = finding["key"] == "far" and looks_like is not None  # the type and the shape are right
    if not finding["ok"] and known and torch.equal(got, looks_like):
        return expect(case, False, mistake)
    return finding


def log2(p: int) -> int:
    """log2(p), rounded up."""
    return (p - 1).bit_length()


# --------------------------------------------------------------------------- 1. deadlock


def check_deadlock(pass_right: Any, rank: int, world_size: int) -> list[Finding]:
    import torch

    x = torch.arange(1000.0) + 10 * rank
    with measured() as seen:
        got = pass_right(x)
    left, right = (torch.arange(1000.0) + 10 * ((rank + k) % world_size) for k in (-1, 1))
    return [
        expect_values("values", got, left, "backwards", right),
        expect("unchanged", torch.equal(x, torch.arange(1000.0) + 10 * rank), "changed"),
        expect_sent("bytes", seen, minimum=x.nbytes),
    ]


DEADLOCK = Exercise(
    id="01.deadlock",
    names=("pass_right",),
    checker=check_deadlock,
    cases={"values": _VALUES, "unchanged": _UNCHANGED, "bytes": _BYTES},
    messages=_MESSAGES,
    solution="""\
def pass_right(x):
    arrived = torch.empty_like(x)
    coming = dist.irecv(arrived, (rank - 1) % world_size)
    dist.send(x, (rank + 1) % world_size)
    coming.wait()
    return arrived
""",
    wrong=(
        # Everybody receives first: it hangs as well.
        "def pass_right(x):\n"
        "    arrived = torch.empty_like(x)\n"
        "    dist.recv(arrived, (rank - 1) % world_size)\n"
        "    dist.send(x, (rank + 1) % world_size)\n"
        "    return arrived\n",
        # Does not hang any more, but passes to the left.
        "def pass_right(x):\n"
        "    arrived = torch.empty_like(x)\n"
        "    coming = dist.irecv(arrived, (rank + 1) % world_size)\n"
        "    dist.send(x, (rank - 1) % world_size)\n"
        "    coming.wait()\n"
        "    return arrived\n",
        # Right, but every rank gets everything.
        "def pass_right(x):\n"
        "    parts = [torch.empty_like(x) for _ in range(world_size)]\n"
        "    dist.all_gather(parts, x)\n"
        "    return parts[(rank - 1) % world_size]\n",
    ),
    hints={
        "ko": (
            "모두가 send에서 기다립니다. 받아 줄 사람이 없기 때문입니다.",
            "받을 준비를 먼저 걸어 두고(irecv) 보내거나, 짝수와 홀수 랭크의 순서를 바꾸세요.",
            "irecv가 돌려준 것의 wait()가 끝나야 값이 와 있습니다.",
        ),
        "en": (
            "Everybody waits in send: nobody is there to receive.",
            "Get ready to receive first (irecv), then send; or let odd ranks receive first.",
            "The values are there once wait() of what irecv returned has ended.",
        ),
    },
)

# --------------------------------------------------------------------------- 2. transpose


def check_transpose(transpose: Any, rank: int, world_size: int) -> list[Finding]:
    import torch

    n, own = 32 * world_size, 32
    matrix = torch.arange(float(n * n)).view(n, n)
    rows = matrix[rank * own : (rank + 1) * own].clone()
    with measured() as seen:
        got = transpose(rows)
    small = torch.arange(world_size**2, dtype=torch.int64).view(world_size, world_size)
    got_small = transpose(small[rank : rank + 1].clone())
    want = matrix.T[rank * own : (rank + 1) * own].contiguous()
    inside_out = torch.cat([block.T for block in want.split(own, dim=1)], dim=1)
    return [
        expect_values("values", got, want, "blocks", inside_out),
        expect_equal("small", got_small, small.T[rank : rank + 1].contiguous()),
        expect_sent("bytes", seen, minimum=(world_size - 1) / world_size * rows.nbytes),
    ]


TRANSPOSE = Exercise(
    id="01.all_to_all_transpose",
    names=("transpose",),
    checker=check_transpose,
    cases={
        "values": _VALUES,
        "small": {"ko": "한 행씩 가진 정수 행렬", "en": "integers, one row a rank"},
        "bytes": _BYTES,
    },
    messages=_MESSAGES,
    solution="""\
def transpose(rows):
    own = len(rows)  # n / p
    leaving = rows.view(own, world_size, own).transpose(0, 1).contiguous()  # (p, n/p, n/p)
    arriving = torch.empty_like(leaving)
    dist.all_to_all_single(arriving, leaving)
    return arriving.permute(2, 0, 1).reshape(own, -1)
""",
    wrong=(
        # Everybody gets the whole matrix.
        "def transpose(rows):\n"
        "    parts = [torch.empty_like(rows) for _ in range(world_size)]\n"
        "    dist.all_gather(parts, rows)\n"
        "    own = len(rows)\n"
        "    return torch.cat(parts).T[rank * own : (rank + 1) * own].contiguous()\n",
        # Moves the blocks, and forgets to transpose inside them.
        "def transpose(rows):\n"
        "    own = len(rows)\n"
        "    leaving = rows.view(own, world_size, own).transpose(0, 1).contiguous()\n"
        "    arriving = torch.empty_like(leaving)\n"
        "    dist.all_to_all_single(arriving, leaving)\n"
        "    return arriving.transpose(0, 1).reshape(own, -1)\n",
        # Sends rows where columns were needed.
        "def transpose(rows):\n"
        "    arriving = torch.empty_like(rows)\n"
        "    dist.all_to_all_single(arriving, rows)\n"
        "    return arriving\n",
    ),
    hints={
        "ko": (
            "랭크 k에게 필요한 것은 내 행에서 k번째 열 묶음입니다.",
            "rows.view(own, world_size, own)으로 자르고, 상대 번호가 맨 앞에 오도록 축을 바꾸세요. "
            "메모리에서도 그 순서여야 합니다(contiguous).",
            "all_to_all_single 뒤의 모양은 (보낸 랭크, 그 랭크의 행, 내 열)입니다. "
            "원하는 것은 (내 열, 보낸 랭크, 그 랭크의 행)입니다.",
        ),
        "en": (
            "Rank k needs the k-th group of columns of my rows.",
            "Cut with rows.view(own, world_size, own), and bring the receiver's axis to the front, "
            "in memory too (contiguous).",
            "What arrives is (sender, its row, my column); wanted is (my column, sender, its row).",
        ),
    },
)

# --------------------------------------------------------------------------- 3. reduce-scatter


def check_reduce_scatter(reduce_scatter: Any, rank: int, world_size: int) -> list[Finding]:
    import torch

    from dlcourse.collectives.tcp_counters import wire_counters

    part = 65_536
    x = torch.arange(float(part * world_size)) % 1000 + rank
    given = x.clone()
    gathered(None)  # nothing is on its way any more
    before = wire_counters()
    with measured() as seen:
        got = reduce_scatter(x)
    after = wire_counters()
    whole = world_size * (torch.arange(float(part * world_size)) % 1000)
    want = (whole + world_size * (world_size - 1) / 2)[rank * part : (rank + 1) * part]
    minimum = (world_size - 1) / world_size * x.nbytes
    # The counters see what a library does inside; where there are none, count the calls.
    sent = after[0] - before[0] if before and after else seen.sent()
    sizes = {"got": human_bytes(sent), "minimum": human_bytes(minimum), "ratio": sent / minimum}
    return [
        expect_close("values", got, want, atol=1e-3),
        expect("unchanged", torch.equal(x, given), "changed"),
        expect("bytes", sent <= 1.05 * minimum, "wire", **sizes),
    ]


REDUCE_SCATTER = Exercise(
    id="01.reduce_scatter",
    names=("reduce_scatter",),
    checker=check_reduce_scatter,
    cases={"values": _VALUES, "unchanged": _UNCHANGED, "bytes": _BYTES},
    messages=_MESSAGES,
    solution="""\
def reduce_scatter(x):
    parts = x.chunk(world_size)
    total = parts[rank].clone()
    inboxes, work = [], []
    for k in range(1, world_size):
        source, target = (rank - k) % world_size, (rank + k) % world_size
        inboxes.append(torch.empty_like(total))
        work.append(dist.irecv(inboxes[-1], source))
        work.append(dist.isend(parts[target], target))
    for w in work:
        w.wait()
    for inbox in inboxes:
        total += inbox
    return total
""",
    wrong=(
        # Right, and sends twice what is needed.
        "def reduce_scatter(x):\n"
        "    total = x.clone()\n"
        "    dist.all_reduce(total)\n"
        "    return total.chunk(world_size)[rank].clone()\n",
        # Looks like half; on Gloo it is an all-reduce inside.
        "def reduce_scatter(x):\n"
        "    mine = torch.empty(len(x) // world_size)\n"
        "    dist.reduce_scatter(mine, list(x.chunk(world_size)))\n"
        "    return mine\n",
        # The lesson's ring works inside x.
        "from dlcourse.collectives.ring import ring_reduce_scatter\n\n\n"
        "def reduce_scatter(x):\n"
        "    return ring_reduce_scatter(x).clone()\n",
        # Adds into a part of x itself.
        "def reduce_scatter(x):\n"
        "    parts = x.chunk(world_size)\n"
        "    for k in range(1, world_size):\n"
        "        source, target = (rank - k) % world_size, (rank + k) % world_size\n"
        "        inbox = torch.empty_like(parts[rank])\n"
        "        coming = dist.irecv(inbox, source)\n"
        "        dist.send(parts[target], target)\n"
        "        coming.wait()\n"
        "        parts[rank].add_(inbox)\n"
        "    return parts[rank]\n",
    ),
    hints={
        "ko": (
            "torch의 reduce_scatter는 Gloo에서 올리듀스만큼 보냅니다. 점대점 통신이나 올투올로 "
            "만드세요.",
            "랭크 k에게는 k의 몫만 보내면 됩니다. 모두 합쳐 p - 1조각입니다.",
            "irecv를 먼저 걸고 isend를 한 다음, 모두 기다렸다가 더하세요. "
            "chunk는 복사본이 아니므로 더할 곳은 clone으로 만드세요.",
        ),
        "en": (
            "On Gloo, torch's reduce_scatter sends an all-reduce: build it from point-to-point "
            "messages, or from an all-to-all.",
            "Rank k needs only its part of your x: p - 1 parts leave you in all.",
            "Post irecv, then isend, wait for all, and add. chunk() does not copy: "
            "add into a clone.",
        ),
    },
)

# --------------------------------------------------------------------------- 4. tree broadcast


def check_broadcast(broadcast: Any, rank: int, world_size: int) -> list[Finding]:
    import torch

    with measured() as seen:
        got = broadcast(torch.arange(1000.0) + 7 * rank)
    sends = seen.calls("send")
    limit = log2(world_size)
    return [
        expect_equal("values", got, torch.arange(1000.0)),
        expect_only_messages("only", seen),
        expect_rounds("rounds", seen, limit),
        expect("root", rank > 0 or sends <= limit, "root", got=sends, limit=limit),
    ]


BROADCAST = Exercise(
    id="01.broadcast_tree",
    names=("broadcast",),
    checker=check_broadcast,
    cases={
        "values": _VALUES,
        "only": _ONLY,
        "rounds": _ROUNDS,
        "root": {"ko": "랭크 0이 보내는 횟수", "en": "messages that rank 0 sends"},
    },
    messages=_MESSAGES,
    solution="""\
def broadcast(x):
    have = 1  # ranks 0 ... have - 1 have the data
    while have < world_size:
        if rank < have and rank + have < world_size:
            dist.send(x, rank + have)
        elif have <= rank < 2 * have:
            dist.recv(x, rank - have)
        have *= 2
    return x
""",
    wrong=(
        # Rank 0 serves everybody.
        "def broadcast(x):\n"
        "    if rank == 0:\n"
        "        for k in range(1, world_size):\n"
        "            dist.send(x, k)\n"
        "    else:\n"
        "        dist.recv(x, 0)\n"
        "    return x\n",
        # A chain: one message a rank, but one after the other.
        "def broadcast(x):\n"
        "    if rank > 0:\n"
        "        dist.recv(x, rank - 1)\n"
        "    if rank < world_size - 1:\n"
        "        dist.send(x, rank + 1)\n"
        "    return x\n",
        "def broadcast(x):\n    dist.broadcast(x, src=0)\n    return x\n",
        # Forgets to return.
        "def broadcast(x):\n"
        "    have = 1\n"
        "    while have < world_size:\n"
        "        if rank < have:\n"
        "            dist.send(x, rank + have)\n"
        "        elif rank < 2 * have:\n"
        "            dist.recv(x, rank - have)\n"
        "        have *= 2\n",
    ),
    hints={
        "ko": (
            "첫 라운드가 끝나면 두 랭크가, 다음 라운드가 끝나면 네 랭크가 데이터를 가집니다.",
            "데이터를 가진 랭크가 have개라면, 랭크 r < have는 랭크 r + have에게 보냅니다.",
            "반복문에서 have를 1, 2, 4, …로 키우세요. 모든 랭크가 같은 반복문을 돕니다.",
        ),
        "en": (
            "After the first round two ranks have the data, after the second, four.",
            "When `have` ranks have it, each rank r < have sends to rank r + have.",
            "Loop with have = 1, 2, 4, …; every rank runs the same loop.",
        ),
    },
)

# --------------------------------------------------------------------------- 5. all-gather


def check_all_gather(all_gather: Any, rank: int, world_size: int) -> list[Finding]:
    import torch

    part = torch.arange(1000.0) + 10_000 * rank
    with measured() as seen:
        got = all_gather(part.clone())
    want = torch.cat([torch.arange(1000.0) + 10_000 * k for k in range(world_size)])
    integers = all_gather(torch.full((3,), rank, dtype=torch.int64))
    values = expect_equal("values", got, want)
    if values["key"] == "far" and torch.equal(got.sort().values, want):
        values = expect("values", False, "order")
    return [
        values,
        expect_equal("integers", integers, torch.arange(world_size).repeat_interleave(3)),
        expect_only_messages("only", seen),
        expect_sent("bytes", seen, minimum=(world_size - 1) * part.nbytes),
        expect_rounds("rounds", seen, log2(world_size)),
    ]


ALL_GATHER = Exercise(
    id="01.all_gather_from_p2p",
    names=("all_gather",),
    checker=check_all_gather,
    cases={
        "values": _VALUES,
        "integers": {"ko": "정수 조각", "en": "parts of integers"},
        "only": _ONLY,
        "bytes": _BYTES,
        "rounds": _ROUNDS,
    },
    messages=_MESSAGES,
    solution="""\
def all_gather(part):
    n = len(part)
    whole = part.new_empty(world_size * n)
    whole[rank * n : (rank + 1) * n] = part
    have = 1  # parts that this rank has: a block of neighbours
    while have < world_size:
        peer = rank ^ have  # the partner of this round: one bit differs
        mine, theirs = rank // have * have * n, peer // have * have * n
        coming = dist.irecv(whole[theirs : theirs + have * n], peer)
        dist.send(whole[mine : mine + have * n], peer)
        coming.wait()
        have *= 2
    return whole
""",
    wrong=(
        # The ring: the least bytes, but p - 1 rounds.
        "def all_gather(part):\n"
        "    parts = [torch.empty_like(part) for _ in range(world_size)]\n"
        "    parts[rank] = part\n"
        "    for step in range(world_size - 1):\n"
        "        coming = dist.irecv(parts[rank - step - 1], (rank - 1) % world_size)\n"
        "        dist.send(parts[rank - step], (rank + 1) % world_size)\n"
        "        coming.wait()\n"
        "    return torch.cat(parts)\n",
        # Few rounds, but always the whole buffer.
        "def all_gather(part):\n"
        "    n = len(part)\n"
        "    whole = part.new_zeros(world_size * n)\n"
        "    whole[rank * n : (rank + 1) * n] = part\n"
        "    have = 1\n"
        "    while have < world_size:\n"
        "        inbox = torch.empty_like(whole)\n"
        "        coming = dist.irecv(inbox, rank ^ have)\n"
        "        dist.send(whole, rank ^ have)\n"
        "        coming.wait()\n"
        "        whole += inbox\n"
        "        have *= 2\n"
        "    return whole\n",
        # The result is float whatever the parts are.
        "def all_gather(part):\n"
        "    n = len(part)\n"
        "    whole = torch.empty(world_size * n)\n"
        "    whole[rank * n : (rank + 1) * n] = part\n"
        "    have = 1\n"
        "    while have < world_size:\n"
        "        peer = rank ^ have\n"
        "        mine, theirs = rank // have * have * n, peer // have * have * n\n"
        "        coming = dist.irecv(whole[theirs : theirs + have * n], peer)\n"
        "        dist.send(whole[mine : mine + have * n], peer)\n"
        "        coming.wait()\n"
        "        have *= 2\n"
        "    return whole\n",
        "def all_gather(part):\n"
        "    parts = [torch.empty_like(part) for _ in range(world_size)]\n"
        "    dist.all_gather(parts, part)\n"
        "    return torch.cat(parts)\n",
    ),
    hints={
        "ko": (
            "트리처럼 라운드마다 가진 양을 두 배로 늘리되, 이번에는 모두가 동시에 주고받습니다.",
            "첫 라운드에는 0↔1, 2↔3이 한 조각씩, 다음 라운드에는 0↔2, 1↔3이 두 조각씩 맞바꿉니다.",
            "짝은 rank ^ have입니다(have = 1, 2, 4, …). "
            "내 묶음은 rank // have * have번 조각에서 시작합니다.",
        ),
        "en": (
            "As in the tree, what a rank has doubles in each round; but here all ranks trade.",
            "First 0 and 1, 2 and 3 trade one part; then 0 and 2, 1 and 3 trade two parts.",
            "The partner is rank ^ have (have = 1, 2, 4, …); my block starts at part "
            "rank // have * have.",
        ),
    },
)

EXERCISES = [DEADLOCK, TRANSPOSE, REDUCE_SCATTER, BROADCAST, ALL_GATHER]
