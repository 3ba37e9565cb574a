# %% [markdown] lang="en" form="core"
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
# Say that each GPU has a network card that moves 50 GB a second (400 Gb/s). How long does everybody
# wait? Guess before you run the next cell.
#
# Time: reading 21 min + exercises 33 min.
# %% [markdown] lang="ko" en="6c2dedfa"
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
# GPU마다 1초에 50 GB(400 Gb/s)를 나르는 네트워크 카드가 하나씩 있다고 합시다. 모두 얼마나 기다려야 할까요? 다음
# 셀을 실행하기 전에 짐작해 보세요.
#
# 시간: 읽기 21분 + 연습 33분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 4
device = "auto"
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, explore, hint, lesson, predict, quiz, solution
from dlcourse.figures.collectives import figures_of_c1, figures_of_c2, figures_of_c5, ratio
from dlcourse.figures.collectives import ring_tree_direct, show_assumptions, show_bandwidth
from dlcourse.figures.collectives import show_cards, show_equal, show_here, show_imposed
from dlcourse.figures.collectives import show_library, show_pieces, show_published, show_ring
from dlcourse.figures.collectives import show_sent, show_strategies

lesson(lang=lang, name="01_collectives")
ranks = Ranks(num_ranks, device=device)
# %% tags=["nbval-check-output"]
gpus, gradients, card = 64, 15e9, 50e9
f"{2 * (gpus - 1) * gradients / card:.1f} s"
# %% [markdown] lang="en"
# 38 seconds for each training step: 63 times 15 GB into rank 0's card, then 63 times out of it,
# while the others mostly wait. At the end of this lesson the same cards need less than a second.
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
# | each: a piece for every rank | each: a piece from every rank | all-to-all |
# | one | one | send, recv |
# %% [markdown] lang="ko" en="26425821"
# 학습 스텝마다 38초입니다. 15 GB가 랭크 0의 카드로 63번 들어오고 63번 나가는 동안 나머지는 거의 놉니다.
# 이 레슨이 끝날 때는 같은 카드로 1초도 걸리지 않습니다.
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
# | 각자 상대마다 줄 조각 | 각자 상대마다 받은 조각 | 올투올(all-to-all) |
# | 하나 | 하나 | 점대점 통신(send, recv) |
# %%
# %%ranks
x = torch.arange(1, world_size + 1, device=device) * 10**rank
copied, summed = x.clone(), x.clone()
dist.broadcast(copied, src=0)
dist.all_reduce(summed)
# %%
show_pieces("one_to_all", ranks["x"], broadcast=ranks["copied"], all_reduce=ranks["summed"])
# %% [markdown] lang="en"
# That `%%ranks` cell ran in every rank, with its own `rank`. Each rank writes in its own decimal
# digit, so 1011 would be a sum of ranks 0, 1 and 3. A row is a rank, a colour is the rank that the
# numbers come from, a frame marks what has changed.
#
# Often a rank needs only *its part* of the sum. That is a reduce-scatter. Its mirror image is the
# all-gather. What do you get from one after the other?
# %% [markdown] lang="ko" en="0f9b4079"
# `%%ranks` 셀은 모든 랭크에서 저마다의 `rank` 값으로 실행됩니다. 랭크마다 자릿수를 하나씩 쓰므로 1011이 보이면 랭크
# 0, 1, 3을 더한 값입니다. 한 줄이 랭크 하나이고, 색은 그 숫자가 나온 랭크를, 테두리는 바뀐 칸을 뜻합니다.
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
# %%
show_pieces("halves", ranks["x"], reduce_scatter=ranks["scattered"], all_gather=ranks["gathered"])
# %% [markdown] lang="en"
# The last square is that of the all-reduce: **reduce-scatter + all-gather = all-reduce**. Keep this
# sentence; the ring, ZeRO and FSDP all live on it.
#
# ## What an all-reduce costs
#
# Four ranks hold $S$ = 4 MiB each. **Predict** two numbers before you measure. How many bytes does
# *rank 0* send in the naive way, where it gives the sum to all others? And how many does each rank
# send if the work is shared fairly, by a reduce-scatter and then an all-gather? (Lesson 00 measured
# it. This time derive it: how many pieces does each half send?)
# %% [markdown] lang="ko" en="96a9b5d5"
# 마지막 정사각형은 올리듀스의 결과와 같습니다. **리듀스스캐터 + 올게더 = 올리듀스**입니다. 이 한 줄을 기억해 두세요.
# 링도, ZeRO도, FSDP도 여기에서 나옵니다.
#
# ## 올리듀스의 비용
#
# 랭크 네 개가 저마다 $S$ = 4 MiB를 들고 있습니다. 재기 전에 두 가지를 **예측해 보세요.** 랭크 0이 합을
# 모두에게 돌려주는 맨 처음 방법(naive)에서 *랭크 0*은 몇 바이트를 보낼까요? 리듀스스캐터와 올게더로 일을
# 공평하게 나누면 랭크마다 몇 바이트를 보낼까요? (레슨 00에서 잰 값입니다. 이번에는 양쪽에서 조각을 몇 개씩
# 보내는지 세어 구해 보세요.)
# %%
predict("01.naive")
predict("01.ring")
# %%
# %%ranks
def naive(total):
    others = range(1, world_size)
    if rank:
        dist.send(total, 0)
        dist.recv(total, 0)
    else:
        inbox = torch.empty_like(total)
        for source in others:
            dist.recv(inbox, source)
            total += inbox
        for target in others:
            dist.send(total, target)
# %% [markdown] lang="en"
# The others send once, and wait. How can everybody work all the time? Cut the tensor into as many
# **chunks** as there are ranks, and stand in a **ring**: each rank sends to its right neighbour
# only, a *different* chunk from each rank, all at the same moment.
#
# ```mermaid
# flowchart LR
#   a((0)) -- chunk 3 --> b((1)) -- chunk 0 --> c((2)) -- chunk 1 --> d((3)) -- chunk 2 --> a
# ```
#
# The receiver adds in the first half and overwrites in the second. The next cell is all of it; folded
# below it is the course's module, which takes groups and MAX, too.
# %% [markdown] lang="ko" en="e794f772"
# 나머지 랭크는 한 번 보내고 기다립니다. 모두가 쉬지 않고 일하게 하려면 어떻게 해야 할까요? 텐서를 랭크 수만큼
# **조각**(chunk)으로 자르고 **링**(ring)으로 늘어섭니다. 랭크는 오른쪽 이웃에게만 보내고, 같은 순간에 저마다 *다른*
# 조각을 보냅니다.
#
# ```mermaid
# flowchart LR
#   a((0)) -- 조각 3 --> b((1)) -- 조각 0 --> c((2)) -- 조각 1 --> d((3)) -- 조각 2 --> a
# ```
#
# 받는 쪽은 앞의 절반 동안은 더하고, 뒤의 절반 동안은 덮어씁니다. 다음 셀이 그 전부이고, 그 아래에는 그룹과 MAX도 받는 이
# 과정의 모듈을 접어 두었습니다.
# %%
# %%ranks
def ring(tensor, after=lambda: None):
    chunks = tensor.view(-1).tensor_split(world_size)
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    for step in range(2 * (world_size - 1)):
        leaving, arriving = (rank - step - 1) % world_size, (rank - step - 2) % world_size
        inbox = torch.empty_like(chunks[arriving])
        receive = dist.P2POp(dist.irecv, inbox, left)
        send = dist.P2POp(dist.isend, chunks[leaving], right)
        for work in dist.batch_isend_irecv([receive, send]):
            work.wait()
        adding = step < world_size - 1
        chunks[arriving].copy_(inbox + chunks[arriving] if adding else inbox)
        after()
# %% hidden=true source="dlcourse.collectives.ring:ring_reduce_scatter,ring_all_gather,ring_all_reduce"

# %%
# %%ranks
going_round = x.clone()
seen_rounds = [going_round.tolist()]
ring(going_round, after=lambda: seen_rounds.append(going_round.tolist()))
# %%
show_ring(ranks["seen_rounds"])
# %% [markdown] lang="en"
# Follow one chunk: look for 1111. It starts as 10 on rank 1, picks up a colour on every rank, is
# complete on rank 0 after the first half (a reduce-scatter!), and is then handed round (an
# all-gather!). Now count the bytes of both ways, and of a third one: a **tree**. In each round of it
# twice as many ranks have the data; the same rounds played backwards, with additions, collect the sum.
#
# ```mermaid
# flowchart LR
#   a((0)) -- round 1 --> b((1))
#   a -- round 2 --> c((2))
#   b -- round 2 --> d((3))
# ```
# %% [markdown] lang="ko" en="ce518d22"
# 조각 하나를 따라가 봅시다. 1111을 찾아보세요. 랭크 1의 10에서 출발해 랭크를 지날 때마다 색이 하나씩 붙고, 절반이 지나면
# 랭크 0에서 완성됩니다(리듀스스캐터!). 그다음에는 한 바퀴 돌며 퍼집니다(올게더!). 이제 두 방법의 바이트를 세고, 하나를 더
# 봅시다. **트리**(tree)에서는 라운드마다 데이터를 가진 랭크가 두 배로 늘어납니다. 같은 라운드를 거꾸로 돌리며 더하면 합이
# 모입니다.
#
# ```mermaid
# flowchart LR
#   a((0)) -- 라운드 1 --> b((1))
#   a -- 라운드 2 --> c((2))
#   b -- 라운드 2 --> d((3))
# ```
# %% hidden=true
# %%ranks
from dlcourse.collectives import direct, shared
from dlcourse.collectives.benchmark import measure
from dlcourse.collectives.imposed_time import imposed_link
from dlcourse.collectives.naive import naive_all_reduce
from dlcourse.collectives.ring import ring_all_reduce
from dlcourse.collectives.tree import tree_all_reduce
from dlcourse.course.exercises import measured


def bytes_sent(call):
    buffer = torch.ones(1 << 20, device=device)
    with measured() as seen:
        call(buffer)
    return int(seen.sent())


sent = {"naive": bytes_sent(naive), "tree": bytes_sent(tree_all_reduce), "ring": bytes_sent(ring)}
# %%
compare("01.naive", ranks["sent"][0]["naive"])
compare("01.ring", ranks["sent"][0]["ring"])
show_sent(ranks["sent"])
# %% [markdown] lang="en"
# In the ring each rank sends $2(p-1)$ chunks of $S/p$ bytes: $2\frac{p-1}{p}S$, **under twice its
# tensor however many ranks there are**. As long as the ranks themselves do the adding, no algorithm
# gets by with less [1].
#
# Are the sums *right*? Floating-point sums depend on the order, so "equal to one process" needs a
# tolerance with a reason.
# %% [markdown] lang="ko" en="5dccf9a8"
# 링에서는 랭크마다 $S/p$ 바이트짜리 조각을 $2(p-1)$번, 모두 $2\frac{p-1}{p}S$를 보냅니다. **랭크가 아무리 많아도
# 자기 텐서의 두 배를 넘지 않습니다.** 랭크끼리 더하는 한, 이보다 적게 보내는 알고리즘은 없습니다[1].
#
# 합은 *맞을까요*? 부동소수점 합은 더하는 순서에 따라 달라집니다. 그래서 '단일 프로세스와 같다'고 하려면 근거 있는 허용
# 오차가 필요합니다.
# %% hidden=true
# %%ranks
seeds = [torch.Generator().manual_seed(k) for k in range(world_size)]
parts = [torch.randn(100_000, generator=seed) for seed in seeds]
exact = torch.stack(parts).double().sum(0)
tolerance = (world_size - 1) * 2**-24 * torch.stack(parts).abs().sum(0).max().item()
ways = {"ring": ring_all_reduce, "tree": tree_all_reduce, "direct": direct.all_reduce}
ways |= {"naive": naive_all_reduce}
sums = {name: parts[rank].to(device, copy=True) for name in [*ways, "torch", "mine"]}
for name, call in {**ways, "torch": dist.all_reduce, "mine": ring}.items():
    call(sums[name])
errors = {name: (total.cpu() - exact).abs().max().item() for name, total in sums.items()}
sums = {name: total.cpu().numpy() for name, total in sums.items()}
# %%
show_equal(ranks["errors"], ranks["tolerance"][0], ranks["sums"])
# %% [markdown] lang="en"
# Training relies on the second line: else replicas would drift apart. `direct` is new: every rank
# sends every other its part, all at once. It takes two rounds and as few bytes as the ring, but
# $p-1$ connections are busy at a time.
#
# ## Rounds against bytes
#
# Now *time*. The **alpha-beta model** says: a message of $n$ bytes takes $\alpha + \beta n$.
#
# | all-reduce | how many α | bytes for β |
# |---|---|---|
# | ring | $2(p-1)$ | $2\frac{p-1}{p}S$ |
# | tree | $2\log_2 p$ | $2\log_2 p \cdot S$ |
# | direct | 2 | $2\frac{p-1}{p}S$ |
#
# The sliders' network has α = 5 µs and moves 50 GB a second. Move both sliders. Where does the ring
# overtake the tree, and what do more ranks do?
# %% [markdown] lang="ko" en="e58849b9"
# 학습에는 둘째 줄이 꼭 필요합니다. 랭크마다 합이 조금이라도 다르면 복제본이 어긋나기 시작합니다. `direct`는 새로 나온 방법으로, 모든
# 상대에게 그 몫을 한꺼번에 보냅니다. 두 라운드면 되고 바이트는 링과 같지만, 연결 $p-1$개를 동시에 씁니다.
#
# ## 라운드와 바이트
#
# 이제 *시간*을 봅시다. **α-β 모델**에서 $n$바이트 메시지는 $\alpha + \beta n$초가 걸립니다.
#
# | 올리듀스 | α의 횟수 | β를 곱할 바이트 |
# |---|---|---|
# | 링 | $2(p-1)$ | $2\frac{p-1}{p}S$ |
# | 트리 | $2\log_2 p$ | $2\log_2 p \cdot S$ |
# | direct | 2 | $2\frac{p-1}{p}S$ |
#
# 슬라이더의 네트워크는 α가 5 µs이고 1초에 50 GB를 나릅니다. 슬라이더 두 개를 움직여 보세요. 링은 어디에서
# 트리를 앞지르고, 랭크가 늘면 어떻게 될까요?
# %%
explore(
    ring_tree_direct,
    tensor=["1 KiB", "128 KiB", "1 MiB", "16 MiB", "256 MiB", "4 GiB"],
    ranks=[4, 8, 16, 64, 256, 1024],
)
# %% [markdown] lang="en"
# Small tensors belong to the tree, large ones to the ring, and with more ranks the ring needs a
# larger tensor. By the model `direct` always wins: it does not know that $p-1$ messages at once get
# into each other's way in the switches. Among few ranks `direct` does win.
#
# Do real messages do this? Here all ranks share a few cores, so **the times are imposed**: each rank
# gets a card with a latency of 10 ms and 1 MB/s. Messages and sums stay real. **Predict** for four
# ranks how many times the tree's time the ring takes at 400 bytes, and how many times the ring's time
# the tree takes at 128 kB.
# %% [markdown] lang="ko" en="be16a286"
# 작은 텐서는 트리, 큰 텐서는 링의 몫이고, 랭크가 늘수록 링은 더 큰 텐서라야 이깁니다. 모델에서는 `direct`가 늘 이깁니다.
# 메시지 $p-1$개가 한꺼번에 몰리면 스위치에서 서로 막힌다는 것을 모델이 모르기 때문입니다. 랭크가 적으면 실제로도 이깁니다.
#
# 진짜 메시지도 그럴까요? 여기서는 모든 랭크가 코어 몇 개를 나누어 쓰므로 **시간을 정해 줍니다.** 랭크마다 지연 시간 10 ms,
# 초당 1 MB인 카드를 줍니다. 메시지와 합은 진짜입니다. 랭크 네 개에서 400바이트일 때 링은 트리의 몇 배, 128 kB일 때 트리는
# 링의 몇 배가 걸릴지 **예측해 보세요.**
# %%
predict("01.small")
predict("01.large")
# %% hidden=true
# %%ranks --fast
import time


def fastest(call, data, turns=2):
    found = []
    for _ in range(turns):
        dist.barrier()
        start = time.perf_counter()
        call(data)
        dist.barrier()
        found.append(time.perf_counter() - start)
    return min(found)
# %%
# %%ranks --fast
took = {}
for nbytes in (400, 2_000, 8_000, 32_000, 128_000):
    data = torch.ones(nbytes // 4, device=device)
    with imposed_link(latency=0.010, bandwidth=1e6):
        took[nbytes] = {name: fastest(call, data) for name, call in ways.items()}
# %%
took = ranks["took"][0]
compare("01.small", ratio(took, 400, "ring", "tree"))
compare("01.large", ratio(took, 128_000, "tree", "ring"))
show_imposed(took, num_ranks)
# %% [markdown] lang="en"
# On the right the ring beats the tree: at 128 kB it takes about half of its time, and a third of
# naive's. (`direct` is faster still: as few bytes, fewer rounds, and only four ranks.) On the left
# rounds decide, and the tree beats the ring.
#
# One set of points lies *below* its line, by about 40 ms at every size: naive's. The model lets its
# $2(p-1)$ messages wait for one another, but their latencies overlap: all arrive at rank 0 after one
# α, and the sums leave together. So naive takes two α instead of six, and only its bytes are bad.
#
# Now without imposed times, on this machine as it is:
# %% [markdown] lang="ko" en="ef08888d"
# 오른쪽에서는 링이 트리를 이깁니다. 128 kB에서 링은 트리의 절반쯤, naive의 3분의 1쯤 되는 시간에 끝납니다.
# (`direct`는 더 빠릅니다. 바이트는 링과 같고 라운드가 적은 데다 랭크가 넷뿐입니다.) 왼쪽에서는 라운드 수가
# 시간을 정하고 트리가 링을 이깁니다.
#
# naive만은 점이 선보다 *아래*에 있고, 어느 크기에서나 40 ms쯤 낮습니다. 모델은 메시지 $2(p-1)$개가 차례로
# 기다린다고 보지만, 실제로는 지연 시간이 겹칩니다. 메시지는 모두 α 한 번 뒤에 랭크 0에 닿고, 합도 한꺼번에
# 떠납니다. 그러니 naive에는 α가 여섯 번이 아니라 두 번만 들고, 나쁜 것은 바이트뿐입니다.
#
# 이번에는 시간을 정해 주지 않고 이 컴퓨터에서 그대로 재 봅니다.
# %%
# %%ranks --fast
names = [f"{name}_all_reduce" for name in ("tree", "ring", "direct", "torch", "naive")]
sizes = [1024, *(4**k for k in range(6, 12))]
rows = measure(names, sizes, repeats=4, device=device)
# %%
show_here(ranks["rows"][0])
# %% [markdown] lang="en"
# The title says where the ring loses here. Its advantage is hardly to be seen, since the model's
# assumption, *a wire for each rank*, does not hold. (While other programs run, the points jump.) All
# messages queue for the same few cores, and in total each way sends the same $2(p-1)S$ bytes. What
# counts is how many messages there are and how often a rank has to be woken. The ring and `direct`
# have the most messages, 24 with four ranks, where tree and naive have 6; and the ring waits six
# times, `direct` twice.
#
# So on one machine do not choose an algorithm for a cluster. Count bytes and rounds: they are the
# same everywhere.
# %% [markdown] lang="ko" en="d5da73fd"
# 링이 어디에서 지는지는 그림 제목에 나와 있습니다. *랭크마다 링크가 따로 있다*는 모델의 가정이 맞지 않아서
# 링의 장점이 거의 보이지 않습니다. (다른 프로그램이 돌면 점이 들쭉날쭉합니다.) 모든 메시지가 같은 코어 몇
# 개 앞에 줄을 서고, 보내는 양을 모두 더하면 어느 방법이든 $2(p-1)S$로 같습니다. 남는 것은 메시지 수와
# 랭크를 깨우는 횟수입니다. 랭크 네 개에서 링과 `direct`는 메시지가 24개, 트리와 naive는 6개이고, 링은 여섯
# 번, `direct`는 두 번 기다립니다.
#
# 그러니 클러스터에서 쓸 알고리즘을 컴퓨터 한 대에서 고르지 마세요. 바이트와 라운드 수를 세세요. 그것은 어디서나 같습니다.
# %% [markdown] lang="en"
# ## What a library really sends
#
# So far we counted what *we* asked to be sent. What does Gloo, PyTorch's backend for CPUs, send
# inside? Linux counts the bytes of every TCP connection. **Predict** for four ranks and $S$ = 1 MiB
# the bytes that a rank sends in torch's own reduce-scatter. It is one half of an all-reduce, so…
# %% [markdown] lang="ko" en="257af90c"
# ## 라이브러리가 실제로 보내는 양
#
# 지금까지는 *우리가* 보내 달라고 한 양을 셌습니다. PyTorch가 CPU에서 쓰는 백엔드인 Gloo는 안에서 얼마나 보낼까요?
# 리눅스는 TCP 연결마다 바이트를 셉니다. 랭크 네 개가 $S$ = 1 MiB인 텐서로 torch의 리듀스스캐터를 부르면 랭크 하나가 몇
# 바이트를 보낼지 **예측해 보세요.** 올리듀스의 절반이니까…
# %%
predict("01.scatter")
# %%
# %%ranks --fast
names = ["torch_all_reduce", "ring_all_reduce", "direct_all_reduce"]
names += ["torch_reduce_scatter", "direct_reduce_scatter"]
beside = measure(names, [1 << 20], repeats=7, device=device)
# %%
wire = {row["algorithm"]: row["wire"] for row in ranks["beside"][0]}
if wire["torch_reduce_scatter"]:
    compare("01.scatter", wire["torch_reduce_scatter"])
show_library(ranks["beside"][0])
# %% [markdown] lang="en"
# Everything is as in theory, except one. **Gloo's reduce-scatter sends as much as an all-reduce,
# because it is one**: it makes the whole sum everywhere and throws most of it away
# ([pytorch#118911](https://github.com/pytorch/pytorch/pull/118911)). Ours sends half.
# %% [markdown] lang="ko" en="c167c38b"
# 하나만 빼고 모두 이론대로입니다. **Gloo의 리듀스스캐터는 올리듀스만큼 보냅니다. 사실은 올리듀스이기 때문입니다.** 합
# 전체를 모든 랭크에 만든 다음 대부분을 버립니다
# ([pytorch#118911](https://github.com/pytorch/pytorch/pull/118911)). 우리 것은 절반만 보냅니다.
# %%
claim("C2", **figures_of_c2(wire))
# %% [markdown] lang="en"
# ## A rank that does not come
#
# Now break something. A collective needs *every* rank. What if one of them takes another branch? In
# a real job this is an early `return`, or a data loader that ends sooner on one rank. `--fails` says
# that this cell is expected to fail.
# %% [markdown] lang="ko" en="b2a7be8c"
# ## 오지 않는 랭크
#
# 이번에는 일부러 망가뜨려 봅시다. 집합 통신에는 *모든* 랭크가 와야 합니다. 한 랭크가 다른 분기로 빠지면 어떻게 될까요? 실제
# 학습에서는 너무 이른 `return`이나, 한 랭크에서만 먼저 끝난 데이터 로더가 그런 경우입니다. `--fails`는 이 셀이 실패할
# 것이라는 표시입니다.
# %%
# %%ranks --fails "never reached"
notes = f"kept by rank {rank}"
total = torch.ones(4, device=device)
if rank != 1:
    dist.all_reduce(total)
# %% [markdown] lang="en"
# Read it as you would in a real job: which collective (# counts the calls of this group), who waits,
# **who never came**, in which line. On a cluster you would see nothing for 10 minutes with NCCL, or
# 30 with Gloo: torch's
# [default time-outs](https://docs.pytorch.org/docs/stable/distributed.html). Then *all* ranks fail,
# and the one to blame looks no different. Here the ranks have survived, variables included.
#
# ## Which collective does a training step call?
#
# Four small layers, one step: first with `DistributedDataParallel` (each rank has the whole model,
# lesson 03), then with FSDP2 (each rank keeps a part of every layer, lesson 06).
# %% [markdown] lang="ko" en="74b5b0a6"
# 실제 상황이라 생각하고 읽어 보세요. 어떤 집합 통신인지(# 뒤의 수는 이 그룹의 몇 번째 호출인지), 누가 기다리는지, **누가
# 오지 않았는지**, 몇 번째 줄인지가 나옵니다. 클러스터에서는 NCCL이면 10분, Gloo면 30분 동안 아무 소식이 없습니다. torch의
# [기본 제한 시간](https://docs.pytorch.org/docs/stable/distributed.html)입니다. 그 뒤 *모든* 랭크가 실패하므로 원인이 된
# 랭크를 가려내기 어렵습니다. 여기서는 랭크가 변수까지 그대로 살아 있습니다.
#
# ## 학습 스텝은 어떤 집합 통신을 부를까?
#
# 작은 층 네 개로 한 스텝을 돌립니다. 먼저 `DistributedDataParallel`(랭크마다 모델 전체, 레슨 03), 다음은 FSDP2(랭크마다
# 층의 일부만, 레슨 06)입니다.
# %% hidden=true
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
# %% hidden=true
# %%ranks
batch = torch.randn(8, 256, device=device)
mesh = dist.device_mesh.init_device_mesh(device.type, (world_size,))
by_strategy = {"DDP": traffic(DistributedDataParallel(layers()), batch)}
sharded = layers()
for layer in sharded:
    fully_shard(layer, mesh=mesh)
by_strategy["FSDP2"] = traffic(fully_shard(sharded, mesh=mesh), batch)
# %%
show_strategies(ranks["by_strategy"][0])
# %% [markdown] lang="en"
# By the algorithms FSDP2 sends 1.5 times the bytes: two all-gathers (forward and backward) and a
# reduce-scatter, three halves instead of two. (On Gloo, whose reduce-scatter is a whole all-reduce,
# it is twice.) So "which collective matters?" depends on the strategy:
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
# %% [markdown] lang="ko" en="75beeefe"
# 알고리즘대로라면 FSDP2는 바이트를 1.5배 보냅니다. 올게더 두 번(순전파, 역전파)과 리듀스스캐터 한 번이므로,
# 올리듀스의 절반이 둘이 아니라 셋입니다. (Gloo에서는 리듀스스캐터가 사실은 올리듀스라서 두 배를 보냅니다.)
# 어떤 집합 통신이 중요한지는 전략에 달려 있습니다.
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
# %%
claim("C1", **figures_of_c1(ranks["by_strategy"][0]))
# %% [markdown] lang="en"
# ## Exercises
#
# `check` runs your code in fresh ranks, with hidden cases and targets on bytes and rounds.
# `hint("01.deadlock")` gives a nudge, `solution("01.deadlock")` the answer.
#
# **1. Mend a deadlock** (3 minutes). Each rank sends `x` to its right neighbour and returns what
# comes from the left. It hangs. Run both cells, read the check's message, mend it.
# %% [markdown] lang="ko" en="7006d236"
# ## 연습 문제
#
# `check`는 여러분의 코드를 새 랭크에서 돌립니다. 숨은 경우도 있고, 바이트와 라운드 목표도 있습니다.
# `hint("01.deadlock")`은 실마리를, `solution("01.deadlock")`은 답을 보여 줍니다.
#
# **1. 교착 상태(deadlock) 고치기** (3분). 랭크마다 `x`를 오른쪽 이웃에게 보내고, 왼쪽에서 온 것을 돌려줍니다.
# 그런데 멈춥니다. 두 셀을 실행해 채점 메시지를 읽고 고쳐 보세요.
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
# **2. A real reduce-scatter** (10 minutes). Return this rank's part of the sum of all `x` (the
# first 1/p for rank 0, and so on), with at most half the bytes of an all-reduce, *on the wire*.
# `x` must stay as it is.
# %% [markdown] lang="ko" en="d9327a92"
# **2. 진짜 리듀스스캐터** (10분). 모든 `x`의 합에서 이 랭크의 몫(랭크 0은 처음 1/p, 나머지도 차례대로)을
# 돌려주세요. *실제로 오가는* 바이트가 올리듀스의 절반 이하여야 합니다. `x`는 그대로 두어야 합니다.
# %% exercise="01.reduce_scatter"
# %%ranks
def reduce_scatter(x):
    raise NotImplementedError


# %%
check("01.reduce_scatter")
# %% [markdown] lang="en"
# **3. All-gather, few bytes and few rounds** (20 minutes). Return all ranks' parts in one tensor, in
# rank order, point-to-point only. The ring sends the least, $(p-1)$ parts, but takes $p-1$ rounds.
# Send no more than that in $\log_2 p$ rounds. (The number of ranks is a power of two.)
# %% [markdown] lang="ko" en="2dc1d46a"
# **3. 바이트도 라운드도 적은 올게더** (20분). 점대점 통신만으로 모든 랭크의 조각을 랭크 순서대로 이어 붙여
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
# Back to the first question: 64 GPUs in 8 nodes, with a card of 50 GB/s for each GPU, as DGX H100
# has them [2]. One ring through all 64 GPUs leaves each node over *one* card. NCCL makes several
# rings, each of which leaves over another card, and gives each a part of the tensor. Assumed: all 8
# cards at full speed, no latency, and NVLink inside a node fast enough for 8 rings.
# %% [markdown] lang="ko" en="cfe31ac6"
# ## GPU 클러스터에서는
#
# 첫 질문으로 돌아가 봅시다. GPU 64개가 노드 8개에 있고, DGX H100처럼 GPU마다 50 GB/s짜리 카드가 하나씩 있습니다[2].
# GPU 64개를 지나는 링이 하나뿐이면 노드에서 나갈 때 카드 *하나*만 씁니다. NCCL은 링을 여러 개 만들어 저마다 다른 카드로
# 나가게 하고 텐서를 나누어 싣습니다. 카드 8장이 모두 제 속도를 내고, 지연 시간은 없고, 노드 안의 NVLink가 링 8개를 감당한다고
# 가정합니다.
# %% tags=["nbval-check-output"]
show_cards()
# %% [markdown] lang="en"
# Does "rounds times α" hold on GPUs? Published nccl-tests of an 8-byte all-reduce on nodes of 8 V100
# GPUs with EFA (the network of AWS), 2019
# ([2](https://gist.github.com/jacobkahn/a92f4425abf831ac0799fabe9079263d),
# [4](https://gist.github.com/jacobkahn/1fb3977e99056b7935a6c63dda1e145f),
# [8](https://gist.github.com/jacobkahn/3150a1a38abba40f58d8263d9c55969f) nodes):
# %% [markdown] lang="ko" en="0efe995c"
# GPU에서도 '라운드 수 × α'가 맞을까요? V100 GPU 8개짜리 노드와 EFA(AWS의 네트워크)에서 nccl-tests로 8바이트 올리듀스를 잰
# 공개 기록입니다(2019년, 노드
# [2개](https://gist.github.com/jacobkahn/a92f4425abf831ac0799fabe9079263d),
# [4개](https://gist.github.com/jacobkahn/1fb3977e99056b7935a6c63dda1e145f),
# [8개](https://gist.github.com/jacobkahn/3150a1a38abba40f58d8263d9c55969f)).
# %% tags=["nbval-check-output"]
show_published()
# %% [markdown] lang="en"
# One α of about 5 µs explains all three, so it was a ring. (NCCL since 2.4 also has
# [trees](https://developer.nvidia.com/blog/massively-scale-deep-learning-training-nccl-2-4/), and
# chooses [by itself](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-algo).)
#
# ## In five lines
# 1. Reduce-scatter + all-gather = all-reduce.
# 2. A ring sends $2\frac{p-1}{p}S$ a rank, under $2S$ however large $p$ is; the naive way sends
# $(p-1)S$ from one.
# 3. Time = rounds · α + bytes · β: trees for small tensors, rings for large ones.
# 4. Count on the wire: Gloo's reduce-scatter is an all-reduce.
# 5. A rank that never comes hangs all the others: look for *who is missing*.
#
# Why the same collective is fast in one library and slow in another: [lesson 02](02_backends.ipynb).
#
# Sources: [1] [Patarasu and Yuan 2009](https://doi.org/10.1016/j.jpdc.2008.09.002).
# [2] [DGX H100](https://docs.nvidia.com/dgx/dgxh100-user-guide/).
# %% [markdown] lang="ko" en="d1801796"
# α를 5 µs쯤으로 두면 세 기록이 모두 설명됩니다. 링을 썼다는 뜻입니다. (NCCL 2.4부터는
# [트리](https://developer.nvidia.com/blog/massively-scale-deep-learning-training-nccl-2-4/)도 있고, 무엇을 쓸지
# [스스로 고릅니다](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-algo).)
#
# ## 다섯 줄 요약
# 1. 리듀스스캐터 + 올게더 = 올리듀스.
# 2. 링은 랭크마다 $2\frac{p-1}{p}S$를 보내며 $p$가 아무리 커도 $2S$를 넘지 않습니다. naive는 한 랭크가
# $(p-1)S$를 보냅니다.
# 3. 시간 = 라운드 · α + 바이트 · β. 작은 텐서는 트리, 큰 텐서는 링.
# 4. 실제로 오간 바이트를 세세요. Gloo의 리듀스스캐터는 올리듀스입니다.
# 5. 한 랭크가 오지 않으면 모두 멈춥니다. *누가 없는지* 찾으세요.
#
# 같은 집합 통신이 라이브러리마다 왜 다르게 빠른지는 [레슨 02](02_backends.ipynb)에서 봅니다.
#
# 출처: [1] [Patarasu와 Yuan 2009](https://doi.org/10.1016/j.jpdc.2008.09.002).
# [2] [DGX H100](https://docs.nvidia.com/dgx/dgxh100-user-guide/).
# %%
quiz()
# %% [markdown] lang="en"
# ## Deeper
#
# Not needed for what follows. Everything below runs on its own once the cells above have run.
#
# ### The pattern that adds nothing up
#
# In an all-to-all each rank has a piece for each rank. It transposes the square. Mixture-of-experts
# models send tokens to their experts with one all-to-all and bring them home with a second (lessons
# 07 and 08).
# %% [markdown] lang="ko" en="28508a52"
# ## 더 깊이
#
# 다음 레슨에 꼭 필요하지는 않습니다. 위의 셀을 실행했다면 아래는 어느 것이나 바로 실행할 수 있습니다.
#
# ### 아무것도 더하지 않는 패턴
#
# 올투올에서는 랭크마다 상대별 조각을 하나씩 들고 있습니다. 정사각형을 전치(transpose)하는 셈입니다. 전문가 혼합(MoE) 모델은
# 올투올 한 번으로 토큰을 전문가에게 보내고, 또 한 번으로 되찾아 옵니다(레슨 07, 08).
# %%
# %%ranks
swapped, back = torch.empty_like(x), torch.empty_like(x)
dist.all_to_all_single(swapped, x)
dist.all_to_all_single(back, swapped)
# %%
show_pieces("transpose", ranks["x"], all_to_all=ranks["swapped"], again=ranks["back"])
# %% [markdown] lang="en"
# Try it: an exercise of eight minutes. An n × n matrix lies in rows: rank r has n/p of them. Return this
# rank's rows of the transposed matrix. Each rank may send only what it must: $\frac{p-1}{p}$ of its
# own rows.
# %% [markdown] lang="ko" en="bab54f59"
# 8분짜리 연습 문제로 해 보세요. n × n 행렬이 행으로 나뉘어 랭크마다 n/p개씩 있습니다. 전치한 행렬에서 이 랭크가 맡을 행을
# 돌려주세요. 꼭 필요한 만큼, 곧 자기 행의 $\frac{p-1}{p}$만 보낼 수 있습니다.
# %% exercise="01.all_to_all_transpose"
# %%ranks
def transpose(rows):
    raise NotImplementedError


# %%
check("01.all_to_all_transpose")
# %% [markdown] lang="en"
# ### What do messages queue for here?
#
# Fit α and β to all points of ring and tree, once as if each rank had a wire of its own, once as if
# all messages queued for the same cores. The smaller error is nearer to this machine. If both are
# alike, because other programs run, this sweep cannot tell.
# %% [markdown] lang="ko" en="f2269d95"
# ### 여기서 메시지는 무엇을 기다릴까?
#
# 링과 트리의 모든 점에 α와 β를 두 번 맞춥니다. 한 번은 랭크마다 링크가 따로 있다고 보고, 한 번은 모든 메시지가 같은 코어
# 앞에 줄을 선다고 봅니다. 오차가 작은 쪽이 이 컴퓨터에 더 가깝습니다. 다른 프로그램이 돌고 있어 두 오차가 비슷하면 이
# 측정으로는 가릴 수 없습니다.
# %%
show_assumptions(ranks["rows"][0])
# %% [markdown] lang="en"
# ### Bus bandwidth
#
# Milliseconds cannot be compared between machines or numbers of ranks. **Bus bandwidth** can: for an
# all-reduce it is $\frac{S}{t}\cdot 2\frac{p-1}{p}$, as NVIDIA's
# [nccl-tests](https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md) define it. A
# perfect algorithm reaches the speed of the wire, whatever $p$ is.
# %% [markdown] lang="ko" en="b1e18c92"
# ### 버스 대역폭
#
# 밀리초로는 다른 장비나 다른 랭크 수와 비교할 수 없습니다. **버스 대역폭**(bus bandwidth)으로는 비교할 수 있습니다. NVIDIA
# [nccl-tests](https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md)의 정의로 올리듀스는
# $\frac{S}{t}\cdot 2\frac{p-1}{p}$입니다. 완벽한 알고리즘이라면 $p$와 상관없이 링크의 속도에 이릅니다.
# %%
show_bandwidth(ranks["rows"][0])
# %% [markdown] lang="en"
# A curve that is still rising has not reached the wire's speed: α is still in it. When somebody
# quotes "the bandwidth" of a cluster, ask for the message size.
#
# ### How long does a benchmark take?
#
# On a new cluster one times the collectives that the job will call, before it runs. Say nccl-tests,
# from 8 B to 8 GiB, each size 25 times (5 to warm up, 20 timed), once in place and once out of place,
# on a slow network of 10 GB/s:
# %% [markdown] lang="ko" en="8b2f8513"
# 곡선이 아직 올라가고 있다면 링크의 속도에 이르지 못한 것입니다. α가 아직 섞여 있습니다. 누가 클러스터의 '대역폭'을 말하면
# 메시지 크기부터 물어보세요.
#
# ### 벤치마크는 얼마나 걸릴까?
#
# 새 클러스터에서는 학습을 돌리기 전에 그 학습이 부를 집합 통신부터 재 봅니다. nccl-tests로 8 B부터 8 GiB까지 크기마다
# 25번(준비 5번, 측정 20번)씩 두 차례(제자리, 다른 버퍼), 10 GB/s짜리 느린 네트워크에서 돌린다고 합시다.
# %%
claim("C5", **figures_of_c5(ranks["by_strategy"][0]))
# %% [markdown] lang="en"
# ### Everybody calls, but the shapes differ
# %% [markdown] lang="ko" en="4a3d6b76"
# ### 모두 불렀는데 모양이 다르면
# %%
# %%ranks --fails "disagree"
total = torch.ones(3 if rank else 4, device=device)
dist.all_reduce(total)
# %%
# %%ranks
notes, total
# %% [markdown] lang="en"
# Every element should be the number of ranks. All ranks but rank 0 went on with a *wrong number and
# no error*: one element was never added up. (With larger tensors Gloo may also end a rank at once.)
# So the message names the shapes.
# %% [markdown] lang="ko" en="b5ec499c"
# 원소가 모두 랭크 수와 같아야 합니다. 그런데 랭크 0을 뺀 나머지는 *오류도 없이 틀린 숫자*를 들고 끝났습니다. 원소 하나가
# 더해지지 않았습니다. (텐서가 크면 Gloo가 랭크를 바로 끝내기도 합니다.) 그래서 메시지가 랭크마다 모양을 알려 줍니다.
# %% [markdown] lang="en"
# ### One more exercise: a tree
#
# **Tree broadcast.** Rank 0's `x` reaches every rank, in $\log_2 p$ rounds, with
# `send` and `recv` only. In one round a rank can send one message. Return the tensor.
# %% [markdown] lang="ko" en="5aac2cf2"
# ### 연습 문제 하나 더: 트리
#
# **트리 브로드캐스트.** `send`와 `recv`만으로 랭크 0의 `x`를 $\log_2 p$라운드 만에 모든 랭크에
# 전하세요. 한 라운드에 랭크 하나는 메시지를 하나만 보낼 수 있습니다. 텐서를 돌려주면 됩니다.
# %% exercise="01.broadcast_tree"
# %%ranks
def broadcast(x):
    raise NotImplementedError


# %%
check("01.broadcast_tree")
