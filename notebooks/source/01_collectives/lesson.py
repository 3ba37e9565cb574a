# %% [markdown] lang="en"
# # 01 Collectives: adding up what all ranks have
#
# Sixty-four GPUs have just finished a backward pass. Each holds 15 GB of gradients (7.5 billion
# parameters, 2 bytes each), and each needs the **sum** of all 64 before it can go on.
#
# The obvious way: everybody sends to rank 0, rank 0 adds, and sends the sum back.
#
# ```mermaid
# flowchart TD
#   r1((1)) <--> r0((0))
#   r2((2)) <--> r0
#   r3((3)) <--> r0
#   r4((…63)) <--> r0
# ```
#
# Say that a network card moves 50 GB a second (400 Gb/s). How long does everybody wait? Guess
# before you run the third cell.
# %% [markdown] lang="ko" en="9f35a3dc"
# # 01 집합 통신: 모두가 가진 것 더하기
#
# GPU 64개가 방금 역전파를 마쳤습니다. GPU마다 그래디언트 15 GB(파라미터 75억 개, 2바이트씩)를 들고
# 있고, 다음으로 넘어가려면 64개를 모두 더한 **합**이 저마다 필요합니다.
#
# 가장 먼저 떠오르는 방법은 이렇습니다. 모두 랭크(rank) 0에게 보내고, 랭크 0이 더해서 돌려줍니다.
#
# ```mermaid
# flowchart TD
#   r1((1)) <--> r0((0))
#   r2((2)) <--> r0
#   r3((3)) <--> r0
#   r4((…63)) <--> r0
# ```
#
# 네트워크 카드는 1초에 50 GB(400 Gb/s)를 나른다고 합시다. 모두 얼마나 기다려야 할까요? 아래 세 번째
# 셀을 실행하기 전에 먼저 짐작해 보세요.
# %% tags=["parameters"]
lang = "ko"
num_ranks = 4
device = "auto"
# %%
from statistics import median

from dlcourse import Ranks, check, claim, compare, hint, lesson, predict, quiz, solution
from dlcourse.formulas.collective_time import CostModel, fit
from dlcourse.formulas.traffic import wire_bytes
from dlcourse.figures import charts
from dlcourse.figures.colors import ALGORITHMS, CATEGORIES, RANKS
from dlcourse.figures.collective_buffers import buffers_figure
from dlcourse.words.strings import t
from dlcourse.figures.tables import Table
from dlcourse.words.units import digits, human_bytes, human_seconds

lesson(lang=lang, name="01_collectives")
ranks = Ranks(num_ranks, device=device)
# %% tags=["nbval-check-output"]
gpus, gradients, card = 64, 15e9, 50e9
f"{2 * (gpus - 1) * gradients / card:.1f} s"
# %% [markdown] lang="en"
# 38 seconds for each training step: 63 times 15 GB into rank 0's card, then 63 times out of it,
# while the others mostly wait. At the end of this lesson the same cards need 0.6 s, with code that
# you have read.
#
# First, what can be moved at all? Six patterns cover nearly everything in training. All but the
# last are **collectives**: every rank of the group must make the same call.
#
# | who has it | who gets it | call |
# |---|---|---|
# | one | all, a copy | broadcast |
# | all | all, the sum | all-reduce |
# | all | each a part of the sum | reduce-scatter |
# | each a part | all, everything | all-gather |
# | each a piece for each | each a piece of each | all-to-all |
# | one | one | send, recv |
# %% [markdown] lang="ko" en="81e159de"
# 학습 스텝마다 38초입니다. 15 GB가 랭크 0의 카드로 63번 들어오고 63번 나가는 동안 나머지는 거의 놉니다.
# 이 레슨이 끝날 때는 같은 카드로 0.6초면 됩니다. 그 코드도 직접 읽습니다.
#
# 먼저, 데이터는 어떤 모양으로 오갈까요? 학습에서 쓰는 패턴은 거의 이 여섯 가지입니다. 마지막 줄을 뺀
# 나머지가 **집합 통신**(collective communication)이고, 그룹의 모든 랭크가 똑같이 호출해야 합니다.
#
# | 가진 쪽 | 받는 쪽 | 호출 |
# |---|---|---|
# | 하나 | 모두, 복사본 | 브로드캐스트(broadcast) |
# | 모두 | 모두, 합 | 올리듀스(all-reduce) |
# | 모두 | 각자 합의 한 조각 | 리듀스스캐터(reduce-scatter) |
# | 각자 한 조각 | 모두, 전체 | 올게더(all-gather) |
# | 각자 상대별 조각 | 각자 상대의 조각 | 올투올(all-to-all) |
# | 하나 | 하나 | 점대점 통신(send, recv) |
# %%
# %%ranks
x = torch.arange(1, world_size + 1, device=device) * 10**rank
x
# %% [markdown] lang="en"
# That `%%ranks` cell ran in every rank, with its own `rank`. To see later *whose* numbers went
# where, each rank writes in its own decimal digit: rank 0 in the ones, rank 1 in the tens, and so
# on. So 1011 would be a sum of ranks 0, 1 and 3.
#
# The simplest move is point-to-point: one rank sends, one receives, the others do nothing.
# %% [markdown] lang="ko" en="ae99b3c0"
# 방금 `%%ranks` 셀은 모든 랭크에서 저마다의 `rank` 값으로 실행되었습니다. 나중에 *누구의* 숫자가 어디로
# 갔는지 알아볼 수 있도록 랭크마다 자릿수를 하나씩 씁니다. 랭크 0은 일의 자리, 랭크 1은 십의 자리입니다.
# 그래서 1011이 보이면 랭크 0, 1, 3을 더한 값입니다.
#
# 가장 단순한 이동은 점대점 통신(point-to-point)입니다. 한 랭크가 보내고 한 랭크가 받습니다.
# %% tags=["nbval-check-output"]
# %%ranks
y = x.clone()
if rank == 0:
    dist.send(y, dst=world_size - 1)
if rank == world_size - 1:
    dist.recv(y, src=0)
y
# %% [markdown] lang="en"
# Only the last rank's row has changed. Everything below is made of such messages. Now the two
# best-known collectives, on the same `x`:
# %% [markdown] lang="ko" en="2f388293"
# 마지막 랭크의 줄만 바뀌었습니다. 아래에 나오는 모든 것은 이런 메시지로 만들어집니다. 이번에는 같은 `x`로
# 가장 널리 알려진 집합 통신 두 가지를 해 봅니다.
# %%
# %%ranks
copied, summed = x.clone(), x.clone()
dist.broadcast(copied, src=0)
dist.all_reduce(summed)
# %%
buffers_figure(
    {
        t(".before"): ranks["x"],
        t(".after", op="broadcast"): ranks["copied"],
        t(".after", op="all_reduce"): ranks["summed"],
    },
    title=t(".pieces.one_to_all"),
)
# %% [markdown] lang="en"
# A row is a rank, a colour is the rank that the numbers come from, a frame marks what has changed.
# After the all-reduce each cell has all colours: 1111 contains everybody's first number.
#
# Often a rank needs only *its part* of the sum. That is a reduce-scatter. Its mirror image is the
# all-gather. What do you get from one after the other?
# %% [markdown] lang="ko" en="4c51e60a"
# 한 줄이 랭크 하나입니다. 색은 그 숫자가 나온 랭크를, 테두리는 바뀐 칸을 뜻합니다. 올리듀스 뒤에는 칸마다
# 모든 색이 들어 있습니다. 1111에는 모두의 첫 번째 숫자가 들어 있습니다.
#
# 합 가운데 *자기 몫*만 필요할 때도 많습니다. 그럴 때 쓰는 것이 리듀스스캐터이고, 그 짝이 올게더입니다. 둘을
# 이어서 하면 무엇이 될까요?
# %%
# %%ranks
mine = torch.empty_like(x[:1])
dist.reduce_scatter(mine, list(x.clone().split(1)))
scattered = torch.zeros_like(x)
scattered[rank] = mine

parts = [torch.empty_like(mine) for _ in range(world_size)]
dist.all_gather(parts, mine)
gathered = torch.cat(parts)
assert torch.equal(gathered, summed)
# %%
buffers_figure(
    {
        t(".before"): ranks["x"],
        t(".after", op="reduce_scatter"): ranks["scattered"],
        t(".after", op="all_gather"): ranks["gathered"],
    },
    title=t(".pieces.halves"),
)
# %% [markdown] lang="en"
# The assert in the cell says it: **reduce-scatter + all-gather = all-reduce**. Keep this sentence;
# the ring, ZeRO and FSDP all live on it.
#
# The last pattern adds nothing up. In an all-to-all each rank has a piece for each rank:
# %% [markdown] lang="ko" en="1f76972a"
# 셀 안의 assert가 답입니다. **리듀스스캐터 + 올게더 = 올리듀스**입니다. 이 한 줄을 기억해 두세요. 링도,
# ZeRO도, FSDP도 여기에서 나옵니다.
#
# 마지막 패턴은 아무것도 더하지 않습니다. 올투올에서는 랭크마다 상대별 조각을 하나씩 들고 있습니다.
# %%
# %%ranks
swapped, back = torch.empty_like(x), torch.empty_like(x)
dist.all_to_all_single(swapped, x)
dist.all_to_all_single(back, swapped)
assert torch.equal(back, x)
# %%
buffers_figure(
    {
        t(".before"): ranks["x"],
        t(".after", op="all_to_all"): ranks["swapped"],
        t(".after_again", op="all_to_all"): ranks["back"],
    },
    title=t(".pieces.transpose"),
)
# %% [markdown] lang="en"
# It transposes the square. Mixture-of-experts models send tokens to their experts with one
# all-to-all and bring them home with a second (lessons 07 and 08).
#
# Now the real question: what does an all-reduce **cost**? Predict before you measure. Each rank
# holds $S$ = 4 MiB. How many bytes does *rank 0* send in the naive way? And how many would you
# hope for, if the work were shared fairly? Put numbers in place of `...` if you like.
# %% [markdown] lang="ko" en="fea4410c"
# 올투올은 정사각형을 전치(transpose)합니다. 전문가 혼합(MoE) 모델은 올투올 한 번으로 토큰을 전문가에게 보내고,
# 또 한 번으로 되찾아 옵니다(레슨 07, 08).
#
# 이제 진짜 질문입니다. 올리듀스에는 **비용이 얼마나** 들까요? 재기 전에 예측해 봅시다. 랭크마다 $S$ = 4 MiB를
# 들고 있습니다. 맨 처음 방법(naive)에서 *랭크 0*은 몇 바이트를 보낼까요? 일을 공평하게 나눈다면 얼마까지 줄일
# 수 있을까요? 원한다면 `...` 자리에 숫자를 넣어 보세요.
# %%
S = 4 * 2**20
predict("01.naive", ..., formula=(num_ranks - 1) * S, unit="bytes")
predict("01.ring", ..., formula=2 * (num_ranks - 1) / num_ranks * S, unit="bytes")
# %% source="dlcourse.collectives.naive:naive_all_reduce"
# %% [markdown] lang="en"
# This is the naive way, the course's own code in full. Change it and run it again whenever you
# like. (`flat` is the tensor in one dimension, `reducer` the addition, `scratch` memory to receive
# into.)
#
# `measured()` counts the bytes that a rank gives away:
# %% [markdown] lang="ko" en="8e231b74"
# 이것이 naive 방법의 코드 전체입니다. 언제든 고쳐서 다시 실행해도 됩니다. (`flat`은 텐서를 한 줄로 편 것,
# `reducer`는 덧셈, `scratch`는 받을 때 쓸 메모리입니다.)
#
# `measured()`는 랭크가 내보낸 바이트를 셉니다.
# %% tags=["nbval-check-output"]
# %%ranks
from dlcourse.course.exercises import measured

buffer = torch.ones(1 << 20, device=device)
with measured() as seen:
    naive_all_reduce(buffer)
sent_naive = int(seen.sent())
sent_naive
# %%
compare("01.naive", ranks["sent_naive"][0])
# %% [markdown] lang="en"
# Rank 0 sends the sum to each of the others, one after the other. The others send once, and wait.
#
# How can everybody work all the time? Cut the tensor into as many **chunks** as there are ranks,
# and stand in a **ring**: each rank sends to its right neighbour only, a *different* chunk from
# each rank, all at the same moment.
#
# ```mermaid
# flowchart LR
#   a((0)) -- chunk 3 --> b((1)) -- chunk 0 --> c((2)) -- chunk 1 --> d((3)) -- chunk 2 --> a
# ```
#
# Here it is, with one number a chunk. The receiver adds in the first half and overwrites in the
# second.
# %% [markdown] lang="ko" en="ffe7277b"
# 랭크 0은 합을 다른 랭크에게 하나씩 차례로 보냅니다. 나머지는 한 번 보내고 기다립니다.
#
# 모두가 쉬지 않고 일하게 하려면 어떻게 해야 할까요? 텐서를 랭크 수만큼 **조각**(chunk)으로 자르고
# **링**(ring)으로 늘어섭니다. 랭크는 오른쪽 이웃에게만 보내고, 같은 순간에 저마다 *다른* 조각을 보냅니다.
#
# ```mermaid
# flowchart LR
#   a((0)) -- 조각 3 --> b((1)) -- 조각 0 --> c((2)) -- 조각 1 --> d((3)) -- 조각 2 --> a
# ```
#
# 조각마다 숫자 하나를 넣어 만들어 봅시다. 받는 쪽은 앞의 절반 동안은 더하고, 뒤의 절반 동안은 덮어씁니다.
# %%
# %%ranks
ring = x.clone()
seen_steps = [ring.tolist()]
right, left = (rank + 1) % world_size, (rank - 1) % world_size
for step in range(2 * (world_size - 1)):
    leaving, arriving = (rank - step - 1) % world_size, (rank - step - 2) % world_size
    inbox = torch.empty_like(ring[:1])
    receive = dist.P2POp(dist.irecv, inbox, left)
    send = dist.P2POp(dist.isend, ring[[leaving]], right)
    for work in dist.batch_isend_irecv([receive, send]):
        work.wait()
    adding = step < world_size - 1
    ring[arriving] = inbox[0] + (ring[arriving] if adding else 0)
    seen_steps.append(ring.tolist())
assert torch.equal(ring, summed)
# %%
history = ranks["seen_steps"]
labels = [t(".start"), *(t(".step", n=n) for n in range(1, 2 * num_ranks))]
buffers_figure(
    {label: [rows[n] for rows in history] for n, label in enumerate(labels[: len(history[0])])},
    title=t(".pieces.ring", half=num_ranks - 1),
)
# %% [markdown] lang="en"
# Follow one chunk: look for 1111. It starts as 10 on rank 1, picks up a colour on every rank, is
# complete on rank 0 after the first half (a reduce-scatter!), and is then handed round (an
# all-gather!).
#
# Each rank sends $2(p-1)$ chunks of $S/p$ bytes: $2\frac{p-1}{p}S$, **under twice its tensor
# however many ranks there are**. As long as the ranks themselves do the adding, no algorithm gets
# by with less (Patarasu and Yuan, 2009).
#
# Below is the same for tensors of any size. `RingNeighbours` are the ranks left and right.
# %% [markdown] lang="ko" en="eb4a9a7f"
# 조각 하나를 따라가 봅시다. 1111을 찾아보세요. 랭크 1의 10에서 출발해 랭크를 지날 때마다 색이 하나씩 붙고,
# 절반이 지나면 랭크 0에서 완성됩니다(리듀스스캐터입니다!). 그다음에는 한 바퀴 돌며 퍼집니다(올게더입니다!).
#
# 랭크마다 $S/p$ 바이트짜리 조각을 $2(p-1)$번, 모두 $2\frac{p-1}{p}S$를 보냅니다. **랭크가 아무리 많아도 자기
# 텐서의 두 배를 넘지 않습니다.** 랭크끼리 더하는 한, 이보다 적게 보내는 알고리즘은 없습니다(Patarasu와
# Yuan, 2009).
#
# 아래는 크기에 상관없이 쓸 수 있는 코드입니다. `RingNeighbours`는 양옆의 두 랭크입니다.
# %% source="dlcourse.collectives.ring:ring_reduce_scatter,ring_all_gather,ring_all_reduce"
# %% tags=["nbval-check-output"]
# %%ranks
with measured() as seen:
    ring_all_reduce(buffer)
sent_ring = int(seen.sent())
sent_ring
# %%
compare("01.ring", ranks["sent_ring"][0])
# %% [markdown] lang="en"
# The ring's price is *steps*: $2(p-1)$ of them, one after the other. A **tree** needs far fewer. In
# each round twice as many ranks have the data; played backwards, with additions, it collects it.
#
# ```mermaid
# flowchart LR
#   a((0)) -- round 1 --> b((1))
#   a -- round 2 --> c((2))
#   b -- round 2 --> d((3))
# ```
#
# So an all-reduce takes $2\log_2 p$ rounds. But each message is the whole tensor. (Writing the
# tree is one of the exercises, so its code is not shown here.)
# %% [markdown] lang="ko" en="3b676f0e"
# 링의 대가는 *라운드 수*입니다. 차례로 $2(p-1)$라운드를 거쳐야 합니다. **트리**(tree)는 훨씬 적습니다. 라운드마다
# 데이터를 가진 랭크가 두 배로 늘어납니다. 이것을 거꾸로 돌리며 더하면 데이터를 모을 수 있습니다.
#
# ```mermaid
# flowchart LR
#   a((0)) -- 라운드 1 --> b((1))
#   a -- 라운드 2 --> c((2))
#   b -- 라운드 2 --> d((3))
# ```
#
# 그래서 올리듀스는 $2\log_2 p$라운드면 끝납니다. 대신 메시지마다 텐서 전체를 보냅니다. (트리를 짜는 것은 연습
# 문제이므로 코드는 여기에 싣지 않습니다.)
# %%
# %%ranks
from dlcourse.collectives.tree import tree_all_reduce

with measured() as seen:
    tree_all_reduce(buffer)
sent_tree = int(seen.sent())
# %%
by_algorithm = {name: ranks[f"sent_{name}"] for name in ("naive", "tree", "ring")}
each_rank = range(len(by_algorithm["ring"]))
charts.bars_figure(
    list(by_algorithm),
    {t("figure.rank", rank=k): [sent[k] for sent in by_algorithm.values()] for k in each_rank},
    axis=t(".axis.sent"),
    unit="bytes",
    colors=RANKS,
    title=t(
        ".sent",
        naive=human_bytes(by_algorithm["naive"][0]),
        ring=human_bytes(by_algorithm["ring"][0]),
    ),
)
# %% [markdown] lang="en"
# At four ranks the tree takes a third off rank 0's load; with more ranks it helps more. Only the
# ring is fair.
#
# Are they all *right*? Floating-point sums depend on the order, so "equal to one process" needs a
# tolerance with a reason: each of the $p-1$ additions rounds by at most $2^{-24}$ of the sum so
# far. The naive way adds in rank order, as one process would: there, demand every bit.
# %% [markdown] lang="ko" en="14bceb63"
# 랭크가 네 개일 때 트리에서는 랭크 0의 부담이 3분의 1 줄고, 랭크가 많아질수록 더 많이 줄어듭니다. 공평한
# 것은 링뿐입니다.
#
# 결과는 모두 *맞을까요*? 부동소수점 합은 더하는 순서에 따라 달라집니다. 그래서 '단일 프로세스와 같다'고 하려면
# 근거 있는 허용 오차가 필요합니다. 덧셈 $p-1$번은 저마다 그때까지 더한 값의 $2^{-24}$ 이하로 반올림합니다.
# naive는 단일 프로세스처럼 랭크 순서대로 더하므로 비트 하나까지 같아야 합니다.
# %%
# %%ranks
from dlcourse.collectives import direct, shared

seeds = [torch.Generator().manual_seed(k) for k in range(world_size)]
parts = [torch.randn(100_000, generator=seed) for seed in seeds]
exact = torch.stack(parts).double().sum(0)
tolerance = (world_size - 1) * 2**-24 * torch.stack(parts).abs().sum(0).max().item()
calls = {"naive": naive_all_reduce, "tree": tree_all_reduce, "ring": ring_all_reduce}
calls |= {"direct": direct.all_reduce, "torch": dist.all_reduce}
calls |= {"shared": shared.shared_all_reduce} if device.type == "cpu" else {}
sums = {name: parts[rank].to(device, copy=True) for name in calls}
for name, call in calls.items():
    call(sums[name])
errors = {name: (total.cpu() - exact).abs().max().item() for name, total in sums.items()}
assert max(errors.values()) <= tolerance
assert torch.equal(sums["naive"].cpu(), sum(parts[1:], parts[0]))
{name: f"{value:.1e}" for name, value in {"tolerance": tolerance, **errors}.items()}
# %%
first, *others = ranks["sums"]
assert all((other[name] == first[name]).all() for other in others for name in first)
# %% [markdown] lang="en"
# All within the tolerance, torch's own included. And the second cell asserts something that
# training relies on: after an all-reduce **all ranks hold the same bits**. Else replicas would
# drift apart.
#
# Two ways are new. `direct`: every rank sends every other its part, all at once. Two steps, as few
# bytes as the ring, but $p-1$ connections busy at a time. `shared`: no wire at all, only memory
# that all ranks of a machine can read (lesson 02).
#
# Now *time*. The **alpha-beta model** says: a message of $n$ bytes takes $\alpha + \beta n$.
#
# | all-reduce | how many α | bytes for β |
# |---|---|---|
# | ring | $2(p-1)$ | $2\frac{p-1}{p}S$ |
# | tree | $2\log_2 p$ | $2\log_2 p \cdot S$ |
# %% [markdown] lang="ko" en="ce7a2ec4"
# torch의 올리듀스까지 모두 허용 오차 안에 있습니다. 두 번째 셀은 학습이 기대는 성질을 확인합니다. 올리듀스가
# 끝나면 **모든 랭크의 값이 비트까지 같습니다.** 그렇지 않으면 복제본이 서로 어긋나기 시작합니다.
#
# 새로 나온 방법이 둘 있습니다. `direct`는 모든 상대에게 그 몫을 한꺼번에 보냅니다. 두 라운드면 되고 바이트는 링과
# 같지만, 연결 $p-1$개를 동시에 씁니다. `shared`는 네트워크 없이, 한 컴퓨터의 모든 랭크가 읽는 메모리만 씁니다(레슨 02).
#
# 이제 *시간*을 봅시다. **α-β 모델**에서 $n$바이트 메시지는 $\alpha + \beta n$초가 걸립니다.
#
# | 올리듀스 | α의 횟수 | β를 곱할 바이트 |
# |---|---|---|
# | 링 | $2(p-1)$ | $2\frac{p-1}{p}S$ |
# | 트리 | $2\log_2 p$ | $2\log_2 p \cdot S$ |
# %%
# %%ranks --fast
from dlcourse.collectives.benchmark import measure

ends = measure(["tree_all_reduce", "ring_all_reduce"], [1024, 4 << 20], repeats=9, device=device)
# %%
model = fit(ranks["ends"][0])
crossing = model.crossover("tree_all_reduce", "ring_all_reduce", num_ranks) or 1024
predict("01.crossover", ..., formula=round(crossing), unit="bytes")
Table(
    [t(".quantity"), t(".value")],
    [
        [t(".alpha"), human_seconds(model.alpha)],
        [t(".bandwidth"), human_bytes(1 / max(model.beta, 1e-15))],
        [t(".fit_error"), f"{model.error:.0%}"],
    ],
)
# %% [markdown] lang="en"
# `fit` found α and β from two sizes only, 1 KiB and 4 MiB, and the model now predicts something
# that nobody has measured: the size at which the ring overtakes the tree. (With two ranks both
# take two rounds, so there the ring is predicted to win at every size.)
#
# Measure in between, with all five algorithms taking turns (`--fast` switches the recorder off):
# %% [markdown] lang="ko" en="e431943a"
# `fit`은 1 KiB와 4 MiB, 두 크기만 재고 α와 β를 구했습니다. 이제 모델은 아직 아무도 재지 않은 것을 예측합니다.
# 바로 링이 트리를 앞지르는 크기입니다. (랭크가 두 개면 둘 다 두 라운드이므로 모든 크기에서 링이 이긴다고
# 예측합니다.)
#
# 그 사이의 크기를 재 봅시다. 다섯 알고리즘을 번갈아 실행합니다(`--fast`는 기록기를 끕니다).
# %%
# %%ranks --fast
names = [f"{name}_all_reduce" for name in ("tree", "ring", "direct", "torch", "naive")]
sizes = [4, *(4**k for k in range(5, 12))]
rows = measure(names, sizes, repeats=5, device=device)
# %%
rows = ranks["rows"][0]
sizes = sorted({row["bytes"] for row in rows})
took = {}
for row in rows:
    took.setdefault(row["algorithm"].partition("_")[0], []).append(row["seconds"])
ahead = [n for n, tree, ring in zip(sizes, took["tree"], took["ring"]) if tree <= ring]
overtakes = next((n for n in sizes if n > max(ahead, default=0)), None)
compare("01.crossover", overtakes or f"> {human_bytes(sizes[-1])}")
# %%
said = human_bytes(crossing)
title = t(".crossover", size=human_bytes(overtakes or 0), predicted=said)
charts.cost_model_figure(
    sizes,
    {name: took[name] for name in ("tree", "ring")},
    {k: [model.predict(f"{k}_all_reduce", n, num_ranks) for n in sizes] for k in ("tree", "ring")},
    colors=ALGORITHMS,
    title=title if overtakes else t(".crossover.none", predicted=said),
)
# %% [markdown] lang="en"
# Small tensors: flat lines, only α counts, the tree wins. On a cluster, large ones belong to the
# ring, and libraries switch by size.
#
# Did the crossover come later than predicted here, or never? Then look at what the model assumed:
# *a wire for each rank*. On one machine all messages queue for the same few cores. And in total
# both send the same, $2(p-1)S$: the ring only cuts it into more messages.
#
# Fit α and β under both assumptions, to all points. The smaller error is nearer to this machine. If
# the points jump about, because other programs run, or both errors are alike, this sweep cannot
# tell.
# %% [markdown] lang="ko" en="8085431f"
# 텐서가 작으면 선이 평평합니다. α만 중요하고 트리가 이깁니다. 클러스터에서 큰 텐서는 링의 몫이고, 라이브러리는
# 크기에 따라 알고리즘을 바꿉니다.
#
# 여기서는 교차점이 예측보다 늦게 왔거나 아예 없었나요? 그렇다면 모델의 가정을 살펴봅시다. 모델은 *랭크마다 링크가
# 따로 있다*고 봅니다. 그러나 컴퓨터 한 대에서는 모든 메시지가 같은 코어 몇 개 앞에 줄을 섭니다. 보내는 양을 모두
# 더하면 둘 다 $2(p-1)S$로 같고, 링은 메시지만 더 잘게 나눕니다.
#
# 모든 점에 두 가정을 각각 맞춰 봅시다. 오차가 작은 쪽이 이 컴퓨터에 더 가깝습니다. 다른 프로그램 때문에
# 점이 들쭉날쭉하거나 두 오차가 비슷하면 이 측정으로는 가릴 수 없습니다.
# %%
both = [row for row in rows if row["algorithm"] in ("tree_all_reduce", "ring_all_reduce")]
Table(
    [t(".assumption"), t(".fit_error")],
    [
        [t(".own_wires"), f"{fit(both).error:.0%}"],
        [t(".one_machine"), f"{fit(both, one_machine=True).error:.0%}"],
    ],
)
# %% [markdown] lang="en"
# Milliseconds cannot be compared between machines or numbers of ranks. **Bus bandwidth** can: for
# an all-reduce it is $\frac{S}{t}\cdot 2\frac{p-1}{p}$, as NVIDIA's nccl-tests define it. A perfect
# algorithm reaches the speed of the wire, whatever $p$ is.
# %% [markdown] lang="ko" en="cfbda69d"
# 밀리초로는 다른 장비나 다른 랭크 수와 비교할 수 없습니다. **버스 대역폭**(bus bandwidth)으로는 비교할 수 있습니다.
# NVIDIA nccl-tests의 정의로 올리듀스는 $\frac{S}{t}\cdot 2\frac{p-1}{p}$입니다. 완벽한 알고리즘이라면 $p$와
# 상관없이 링크의 속도에 이릅니다.
# %%
factor = 2 * (num_ranks - 1) / num_ranks
busbw = {k: [factor * n / s / 1e6 for n, s in zip(sizes, took[k])] for k in took}
best = max(busbw, key=lambda name: busbw[name][-1])
at = {"size": human_bytes(sizes[-1]), "rate": digits(busbw[best][-1])}
axes = {"x_unit": "bytes", "y_unit": "MB/s", "log_x": True, "log_y": True}
charts.sweep_figure(
    sizes,
    busbw,
    x_title=t("figure.axis.buffer"),
    y_title=t(".axis.busbw"),
    colors=ALGORITHMS,
    title=t(".best_busbw", name=best, **at),
    **axes,
)
# %% [markdown] lang="en"
# A curve that is still rising has not reached the wire's speed: α is still in it. When somebody
# quotes "the bandwidth" of a cluster, ask for the message size.
#
# How good is ours beside the real library? `torch` above is Gloo, the backend that PyTorch uses on
# CPUs, written in C++. Same tensors, same run, turn by turn:
# %% [markdown] lang="ko" en="b346e917"
# 곡선이 아직 올라가고 있다면 링크의 속도에 이르지 못한 것입니다. α가 아직 섞여 있습니다. 누가 클러스터의
# '대역폭'을 말하면 메시지 크기부터 물어보세요.
#
# 우리 코드는 실제 라이브러리에 견주어 얼마나 될까요? 위의 `torch`는 Gloo입니다. PyTorch가 CPU에서 쓰는 백엔드로,
# C++로 짜여 있습니다. 같은 텐서를 같은 실행에서 번갈아 재 봅시다.
# %%
# %%ranks --fast
names = ["torch_all_reduce", "ring_all_reduce", "direct_all_reduce"]
names += ["shared_all_reduce"] if device.type == "cpu" else []
beside = measure(names, [4 << 20], repeats=11, device=device)
# %%
turns = {row["algorithm"].partition("_")[0]: row["samples"] for row in ranks["beside"][0]}
gloo = turns.pop("torch")
ratios = {name: median(a / b for a, b in zip(own, gloo)) for name, own in turns.items()}
best = min(ratios, key=ratios.get)
charts.bars_figure(
    list(ratios),
    list(ratios.values()),
    colors=[ALGORITHMS[name] for name in ratios],
    axis=t(".axis.ratio"),
    reference=1.0,
    title=t(".same_numbers", name=best, ratio=digits(ratios[best])),
)
# %% [markdown] lang="en"
# On a quiet machine the ring is about as fast as Gloo: the bytes move in C++ either way. When other
# programs run, each further message is one more wait for a core.
#
# So far we counted what *we* asked to be sent. What does Gloo really send, inside? Linux counts the
# bytes of every TCP connection. **Predict** for a tensor of $S$ = 1 MiB: the bytes that a rank
# sends in torch's own reduce-scatter. It is one half of an all-reduce, so…
# %% [markdown] lang="ko" en="f39efa82"
# 한가한 컴퓨터라면 링은 Gloo와 비슷합니다. 바이트는 어느 쪽이든 C++에서 움직이기 때문입니다. 다른 프로그램이
# 돌고 있으면 메시지가 하나 늘 때마다 코어를 한 번 더 기다립니다.
#
# 지금까지는 *우리가* 보내 달라고 한 양을 셌습니다. Gloo는 안에서 실제로 얼마나 보낼까요? 리눅스는 TCP
# 연결마다 바이트를 셉니다. $S$ = 1 MiB인 텐서로 torch의 리듀스스캐터를 부르면 랭크 하나가 몇 바이트를 보낼지
# **예측**해 보세요. 올리듀스의 절반이니까…
# %%
predict("01.scatter", ..., formula=(num_ranks - 1) / num_ranks * 2**20, unit="bytes")
# %%
# %%ranks --fast
names = ["torch_all_reduce", "torch_reduce_scatter", "direct_reduce_scatter"]
names += ["torch_all_gather", "torch_all_to_all"]
counted = measure(names, [1 << 20], repeats=1, device=device)
# %%
counted = {row["algorithm"]: row for row in ranks["counted"][0] if row["wire"]}
wires = [
    {"label": name, "predicted": row["wire_theory"], "measured": row["wire"], "unit": "bytes"}
    for name, row in counted.items()
]
charts.predicted_vs_measured_figure(wires) if wires else t(".no_counters")
# %%
wire = {name: row["wire"] for name, row in counted.items()}
if wire:
    compare("01.scatter", wire["torch_reduce_scatter"])
# %% [markdown] lang="en"
# Everything is as predicted, except one. **Gloo's reduce-scatter sends as much as an all-reduce,
# because it is one**: it makes the whole sum everywhere and throws most of it away
# ([pytorch#118911](https://github.com/pytorch/pytorch/pull/118911)). Ours sends half.
#
# So "a reduce-scatter is half of an all-reduce" holds for the *algorithm*. Whether it holds for you
# depends on the *library*. Claim C2:
# %% [markdown] lang="ko" en="1c0f3cc6"
# 하나만 빼고 모두 예측대로입니다. **Gloo의 리듀스스캐터는 올리듀스만큼 보냅니다. 사실은 올리듀스이기
# 때문입니다.** 합 전체를 모든 랭크에 만든 다음 대부분을 버립니다
# ([pytorch#118911](https://github.com/pytorch/pytorch/pull/118911)). 우리 것은 절반만 보냅니다.
#
# 그래서 '리듀스스캐터는 올리듀스의 절반'이라는 말은 *알고리즘*으로는 맞지만, 실제로도 그런지는
# *라이브러리*에 달려 있습니다. 주장 C2입니다.
# %%
whole = wire.get("torch_all_reduce")
shares = {"gloo_share": "torch_reduce_scatter", "own_share": "direct_reduce_scatter"}
claim("C2", **{key: wire[name] / whole for key, name in shares.items() if whole})
# %% [markdown] lang="en"
# Now break something. A collective needs *every* rank. What if one of them takes another branch?
# In a real job this is an early `return`, a data loader that ends sooner on one rank, or a
# collective that only rank 0 calls. `--fails` says that this cell is expected to fail.
# %% [markdown] lang="ko" en="bb1280c8"
# 이번에는 일부러 망가뜨려 봅시다. 집합 통신에는 *모든* 랭크가 와야 합니다. 한 랭크가 다른 분기로 빠지면
# 어떻게 될까요? 실제 학습에서는 너무 이른 `return`, 한 랭크에서만 먼저 끝난 데이터 로더, 랭크 0에서만 부르는
# 집합 통신이 그런 경우입니다. `--fails`는 이 셀이 실패할 것이라는 표시입니다.
# %%
# %%ranks --fails "never reached"
notes = f"kept by rank {rank}"
total = torch.ones(4, device=device)
if rank != 1:
    dist.all_reduce(total)
# %% [markdown] lang="en"
# Read it as you would in a real job: which collective (# counts the calls of this group), who waits,
# **who never came**, in which line. On a cluster you would see nothing for 10 minutes with NCCL, or 30 with Gloo: torch's
# [default time-outs](https://docs.pytorch.org/docs/stable/distributed.html). Then *all* ranks
# fail, and the one to blame looks no different.
#
# The second classic: everybody calls, but the shapes differ.
# %% [markdown] lang="ko" en="6f3e74be"
# 실제 상황이라 생각하고 읽어 보세요. 어떤 집합 통신인지(# 뒤의 수는 이 그룹의 몇 번째 호출인지), 누가
# 기다리는지, **누가 오지 않았는지**, 몇 번째 줄인지가 나옵니다. 클러스터에서는 NCCL이면 10분, Gloo면 30분
# 동안 아무 소식이 없습니다. torch의
# [기본 제한 시간](https://docs.pytorch.org/docs/stable/distributed.html)입니다. 그 뒤 *모든* 랭크가
# 실패하므로 원인이 된 랭크를 가려내기 어렵습니다.
#
# 두 번째 단골 사고입니다. 모두 부르기는 했는데 모양이 다릅니다.
# %%
# %%ranks --fails "disagree"
total = torch.ones(3 if rank else 4, device=device)
dist.all_reduce(total)
# %%
# %%ranks
notes, total
# %% [markdown] lang="en"
# Look at `total`: every element should be the number of ranks. All ranks but rank 0 went on with a
# *wrong number and no error*: one element was never added up. (With larger tensors Gloo may also
# end a rank at once.) So the message names the shapes.
#
# The ranks have survived both failures, variables included; only their process group was made
# anew. Carry on.
#
# Next question: which of these collectives does a training step call? Take four small layers and
# one step, first with `DistributedDataParallel` (each rank has the whole model, lesson 03), then
# with FSDP2 (each rank keeps a part of every layer, lesson 06).
# %% [markdown] lang="ko" en="60428ffe"
# `total`을 보세요. 원소가 모두 랭크 수와 같아야 합니다. 그런데 랭크 0을 뺀 나머지는 *오류도 없이 틀린 숫자*를
# 들고 끝났습니다. 원소 하나가 더해지지 않았습니다. (텐서가 크면 Gloo가 랭크를 바로 끝내기도 합니다.) 그래서
# 메시지가 랭크마다 모양을 알려 줍니다.
#
# 두 번 실패했지만 랭크는 변수까지 그대로 살아 있습니다. 프로세스 그룹만 새로 만들었습니다. 계속합시다.
#
# 다음 질문입니다. 학습 스텝은 이 가운데 무엇을 부를까요? 작은 층 네 개로 한 스텝을 돌려 봅니다. 먼저
# `DistributedDataParallel`(랭크마다 모델 전체, 레슨 03), 다음은 FSDP2(랭크마다 층의 일부만, 레슨 06)입니다.
# %%
# %%ranks
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dlcourse.measure.run import Run


def traffic(model, batch):
    with measured() as seen:
        model(batch).square().mean().backward()
    return {op["op"]: op["wire_bytes"] for op in Run([seen.record]).comm.ops}


def layers():
    return nn.Sequential(*(nn.Linear(256, 256) for _ in range(4))).to(device)
# %%
# %%ranks
batch = torch.randn(8, 256, device=device)
mesh = dist.device_mesh.init_device_mesh(device.type, (world_size,))
by_strategy = {"DDP": traffic(DistributedDataParallel(layers()), batch)}
sharded = layers()
for layer in sharded:
    fully_shard(layer, mesh=mesh)
by_strategy["FSDP2"] = traffic(fully_shard(sharded, mesh=mesh), batch)
# %%
by_strategy = ranks["by_strategy"][0]
bars = {f"{k}: {op}": sent[op] for k, sent in by_strategy.items() for op in sent}
charts.bars_figure(
    list(bars),
    list(bars.values()),
    axis=t(".axis.sent"),
    unit="bytes",
    colors=[CATEGORIES["communication"]] * len(bars),
    title=t(".strategy"),
)
# %%
share = {k: sent.get("all_reduce", 0) / sum(sent.values()) for k, sent in by_strategy.items()}
total = {name: sum(sent.values()) for name, sent in by_strategy.items()}
claim(
    "C1",
    ddp_share=100 * share["DDP"],
    fsdp2_share=100 * share["FSDP2"],
    fsdp2_bytes=total["FSDP2"] / total["DDP"],
)
# %% [markdown] lang="en"
# FSDP2 pays 1.5 times the bytes: two all-gathers (forward and backward) and a reduce-scatter, three
# halves instead of two. So "which collective matters?" depends on the strategy:
#
# ```mermaid
# flowchart TD
#   Q{how is the model spread?}
#   Q -->|whole copies: DDP| A[all-reduce<br>megabytes, once a bucket of gradients]
#   Q -->|layers cut: tensor parallel| B[all-reduce<br>in every layer, α counts]
#   Q -->|parameters cut: ZeRO, FSDP| C[all-gather and reduce-scatter<br>every layer]
#   Q -->|experts: MoE| D[all-to-all<br>small and large]
#   Q -->|stages: pipeline| E[send, recv]
# ```
#
# On a new cluster one times the collectives that the job will call, before it runs. How long does
# that take? Say nccl-tests, from 8 B to 8 GiB, each size 5 + 20 times, in place and out of place, on
# a slow network of 10 GB/s:
# %% [markdown] lang="ko" en="663179a2"
# FSDP2는 바이트를 1.5배 씁니다. 올게더 두 번(순전파, 역전파)과 리듀스스캐터 한 번, 절반이 둘이 아니라 셋입니다.
# '무엇이 중요한가'는 전략에 달려 있습니다.
#
# ```mermaid
# flowchart TD
#   Q{모델을 어떻게 나누나?}
#   Q -->|전체 복제: DDP| A[올리듀스<br>그래디언트 묶음마다 수 MB]
#   Q -->|층을 자름: 텐서 병렬화| B[올리듀스<br>층마다, α가 중요]
#   Q -->|파라미터를 자름: ZeRO, FSDP| C[올게더와<br>리듀스스캐터<br>층마다]
#   Q -->|전문가: MoE| D[올투올<br>작은 것과 큰 것]
#   Q -->|스테이지: 파이프라인| E[send, recv]
# ```
#
# 새 클러스터에서는 학습을 돌리기 전에 그 학습이 부를 집합 통신부터 재 봅니다. 얼마나 걸릴까요? nccl-tests로
# 8 B부터 8 GiB까지 크기마다 25번(준비 5번, 측정 20번)씩 두 차례(제자리, 다른 버퍼), 10 GB/s짜리 느린
# 네트워크에서 돌린다고 합시다.
# %%
swept = [8 << k for k in range(31)]
bus, runs = 10e9, 2 * (20 + 5)
minutes = runs * sum(wire_bytes("all_reduce", n, gpus) / bus for n in swept) / 60
kinds = {f"{name.lower()}_kinds": len(sent) for name, sent in by_strategy.items()}
claim("C5", sweep_minutes=minutes, **kinds)
# %% [markdown] lang="en"
# ## Exercises
#
# `check` runs your code in fresh ranks, with hidden cases and targets on bytes and rounds.
# `hint("01.deadlock")` gives a nudge, `solution("01.deadlock")` the answer.
#
# **1. Mend a deadlock** (3 minutes). Each rank sends `x` to its right neighbour and returns what
# comes from the left. It hangs. Run it, read the message, mend it.
# %% [markdown] lang="ko" en="4d82b263"
# ## 연습 문제
#
# `check`는 여러분의 코드를 새 랭크에서 돌립니다. 숨은 경우도 있고, 바이트와 라운드 목표도 있습니다.
# `hint("01.deadlock")`은 실마리를, `solution("01.deadlock")`은 답을 보여 줍니다.
#
# **1. 교착 상태(deadlock) 고치기** (3분). 랭크마다 `x`를 오른쪽 이웃에게 보내고, 왼쪽에서 온 것을 돌려줍니다.
# 그런데 멈춥니다. 실행해서 메시지를 읽고 고쳐 보세요.
# %% exercise="01.deadlock"
# %%ranks
def pass_right(x):
    arrived = torch.empty_like(x)
    dist.send(x, (rank + 1) % world_size)
    dist.recv(arrived, (rank - 1) % world_size)
    return arrived


# %%
check("01.deadlock")
# %% [markdown] lang="en"
# **2. Transpose** (8 minutes). An n × n matrix lies in rows: rank r has n/p of them. Return this
# rank's rows of the transposed matrix. Each rank may send only what it must: $\frac{p-1}{p}$ of its
# own rows.
# %% [markdown] lang="ko" en="c5b0c011"
# **2. 전치** (8분). n × n 행렬이 행으로 나뉘어 랭크마다 n/p개씩 있습니다. 전치한 행렬에서 이 랭크가 맡을 행을
# 돌려주세요. 꼭 필요한 만큼, 곧 자기 행의 $\frac{p-1}{p}$만 보낼 수 있습니다.
# %% exercise="01.all_to_all_transpose"
# %%ranks
def transpose(rows):
    raise NotImplementedError


# %%
check("01.all_to_all_transpose")
# %% [markdown] lang="en"
# **3. A real reduce-scatter** (10 minutes). Return this rank's part of the sum of all `x` (the
# first 1/p for rank 0, and so on), with at most half the bytes of an all-reduce, *on the wire*.
# `x` must stay as it is.
# %% [markdown] lang="ko" en="8683dc3c"
# **3. 진짜 리듀스스캐터** (10분). 모든 `x`의 합에서 이 랭크의 몫(랭크 0은 처음 1/p, 나머지도 차례대로)을
# 돌려주세요. *실제로 오가는* 바이트가 올리듀스의 절반 이하여야 합니다. `x`는 그대로 두어야 합니다.
# %% exercise="01.reduce_scatter"
# %%ranks
def reduce_scatter(x):
    raise NotImplementedError


# %%
check("01.reduce_scatter")
# %% [markdown] lang="en"
# **4. Tree broadcast** (15 minutes). Rank 0's `x` reaches every rank, in $\log_2 p$ rounds, with
# `send` and `recv` only. In one round a rank can send one message. Return the tensor.
# %% [markdown] lang="ko" en="726ef05c"
# **4. 트리 브로드캐스트** (15분). `send`와 `recv`만으로 랭크 0의 `x`를 $\log_2 p$라운드 만에 모든 랭크에
# 전하세요. 한 라운드에 랭크 하나는 메시지를 하나만 보낼 수 있습니다. 텐서를 돌려주면 됩니다.
# %% exercise="01.broadcast_tree"
# %%ranks
def broadcast(x):
    raise NotImplementedError


# %%
check("01.broadcast_tree")
# %% [markdown] lang="en"
# **5. All-gather, few bytes and few rounds** (20 minutes). Return all ranks' parts in one tensor, in
# rank order, point-to-point only. The ring sends the least, $(p-1)$ parts, but takes $p-1$ rounds.
# Send no more than that in $\log_2 p$ rounds. (The number of ranks is a power of two.)
# %% [markdown] lang="ko" en="0aeb9fdd"
# **5. 바이트도 라운드도 적은 올게더** (20분). 점대점 통신만으로 모든 랭크의 조각을 랭크 순서대로 이어 붙여
# 돌려주세요. 링은 가장 적은 $(p-1)$조각만 보내지만 $p-1$라운드가 걸립니다. 그보다 더 보내지 않으면서
# $\log_2 p$라운드에 끝내세요. (랭크 수는 2의 거듭제곱입니다.)
# %% exercise="01.all_gather_from_p2p"
# %%ranks
def all_gather(part):
    raise NotImplementedError


# %%
check("01.all_gather_from_p2p")
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# Back to the first question: the same 64 cards, now as a ring.
# %% [markdown] lang="ko" en="82856976"
# ## GPU 클러스터에서는
#
# 첫 질문으로 돌아가 봅시다. 같은 카드 64장을 이번에는 링으로 씁니다.
# %% tags=["nbval-check-output"]
network = CostModel(alpha=0.0, beta=1 / card)
f"{network.predict('ring_all_reduce', gradients, gpus):.2f} s"
# %% [markdown] lang="en"
# What this machine cannot show: NVLink inside a node beside a slower network between nodes, so
# that real all-reduces are built in two levels; and communication that runs beside computation
# (lesson 03). NCCL chooses ring, tree or in-network sums
# [by itself](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-algo).
#
# What carries over is the counting. Does "rounds times α" hold there? Published nccl-tests of an
# 8-byte all-reduce on nodes of 8 V100 GPUs with EFA (the network of AWS), 2019
# ([2](https://gist.github.com/jacobkahn/a92f4425abf831ac0799fabe9079263d),
# [4](https://gist.github.com/jacobkahn/1fb3977e99056b7935a6c63dda1e145f),
# [8](https://gist.github.com/jacobkahn/3150a1a38abba40f58d8263d9c55969f) nodes):
# %% [markdown] lang="ko" en="165b12ea"
# 이 컴퓨터로는 보여 줄 수 없는 것이 있습니다. 클러스터에는 노드 안의 NVLink와 그보다 느린 노드 사이 네트워크가 함께 있어서
# 올리듀스를 두 층으로 짭니다. 통신을 계산과 중첩하는 것도 그렇습니다(레슨 03). NCCL은 링, 트리, 네트워크 안의 합산
# 가운데 무엇을 쓸지 [스스로 고릅니다](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-algo).
#
# 세는 법은 그대로 통합니다. 거기서도 '라운드 수 × α'가 맞을까요? V100 GPU 8개짜리 노드와 EFA(AWS의 네트워크)에서 8바이트 올리듀스를 잰
# 공개 기록입니다(2019년, 노드
# [2개](https://gist.github.com/jacobkahn/a92f4425abf831ac0799fabe9079263d),
# [4개](https://gist.github.com/jacobkahn/1fb3977e99056b7935a6c63dda1e145f),
# [8개](https://gist.github.com/jacobkahn/3150a1a38abba40f58d8263d9c55969f)).
# %% tags=["nbval-check-output"]
published = {16: 163.4e-6, 32: 319.4e-6, 64: 631.3e-6}
Table(
    [t(f".published.{name}") for name in ("gpus", "time", "rounds", "alpha")],
    [
        [p, human_seconds(seconds), 2 * (p - 1), human_seconds(seconds / (2 * (p - 1)))]
        for p, seconds in published.items()
    ],
)
# %% [markdown] lang="en"
# One α of about 5 µs explains all three: a ring. (NCCL since 2.4 also has
# [trees](https://developer.nvidia.com/blog/massively-scale-deep-learning-training-nccl-2-4/).)
#
# ## In five lines
# 1. Reduce-scatter + all-gather = all-reduce.
# 2. A ring sends $2\frac{p-1}{p}S$ a rank, whatever $p$ is; the naive way sends $(p-1)S$ from one.
# 3. Time = rounds · α + bytes · β: trees for small tensors, rings for large ones.
# 4. Count on the wire: Gloo's reduce-scatter is an all-reduce.
# 5. A rank that never comes hangs all the others: look for *who is missing*.
#
# Why the same collective is fast in one library and slow in another: [lesson 02](02_backends.ipynb).
#
# Sources: [Patarasu and Yuan 2009](https://doi.org/10.1016/j.jpdc.2008.09.002);
# [Thakur, Rabenseifner and Gropp 2005](https://doi.org/10.1177/1094342005051521);
# [nccl-tests](https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md);
# [torch.distributed](https://docs.pytorch.org/docs/stable/distributed.html).
# %% [markdown] lang="ko" en="e4b8dbd1"
# α를 5 µs쯤으로 두면 세 기록이 모두 설명됩니다. 링이기 때문입니다. (NCCL 2.4부터는
# [트리](https://developer.nvidia.com/blog/massively-scale-deep-learning-training-nccl-2-4/)도 있습니다.)
#
# ## 다섯 줄 요약
# 1. 리듀스스캐터 + 올게더 = 올리듀스.
# 2. 링은 $p$와 상관없이 랭크마다 $2\frac{p-1}{p}S$를 보내고, naive는 한 랭크가 $(p-1)S$를 보냅니다.
# 3. 시간 = 라운드 · α + 바이트 · β. 작은 텐서는 트리, 큰 텐서는 링.
# 4. 실제로 오간 바이트를 세세요. Gloo의 리듀스스캐터는 올리듀스입니다.
# 5. 한 랭크가 오지 않으면 모두 멈춥니다. *누가 없는지* 찾으세요.
#
# 같은 집합 통신이 라이브러리마다 왜 다르게 빠른지는 [레슨 02](02_backends.ipynb)에서 봅니다.
#
# 출처: [Patarasu와 Yuan 2009](https://doi.org/10.1016/j.jpdc.2008.09.002);
# [Thakur, Rabenseifner, Gropp 2005](https://doi.org/10.1177/1094342005051521);
# [nccl-tests](https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md);
# [torch.distributed](https://docs.pytorch.org/docs/stable/distributed.html).
# %%
quiz()
