# %% [markdown] lang="en" form="core"
# # 08 Expert parallelism: tokens travel to their experts
#
# DeepSeek-V3 has 58 layers of 256 experts [1]. In 16 bits these experts alone take 1.3 TB, and a GPU
# has 80 GB. One token uses 8 of the 256.
#
# A copy of all experts on every GPU, as in data parallelism, is out of the question. So each GPU keeps
# a few experts, and the **tokens** travel: to the GPUs of their experts, and back with the answers. In
# every layer, in every step.
#
# What does the journey cost, in bytes and in waiting? And what if everybody wants the same expert? You
# need lessons [01](01_collectives.ipynb) and [07](07_moe.ipynb).
#
# Time: reading 18 min + exercises 48 min.
# %% [markdown] lang="ko" en="0f8ad53d"
# # 08 전문가 병렬화(expert parallelism): 전문가를 찾아가는 토큰
#
# DeepSeek-V3에는 전문가가 256개씩 있는 층이 58개 있습니다[1]. 16비트로 담아도 전문가만 1.3 TB인데, GPU 메모리는
# 80 GB입니다. 그런데 토큰 하나가 쓰는 전문가는 256개 가운데 8개뿐입니다.
#
# 데이터 병렬화처럼 모든 전문가를 GPU마다 복사해 둘 수는 없습니다. 그래서 GPU마다 전문가를 몇 개씩만 두고
# **토큰**을 보냅니다. 토큰은 자기 전문가가 있는 GPU로 갔다가 답을 가지고 돌아옵니다. 모든 층에서, 모든 스텝마다
# 그렇습니다.
#
# 이 왕복에는 몇 바이트가 들고, 얼마나 기다려야 할까요? 모두가 같은 전문가를 원하면 어떻게 될까요?
# 레슨 [01](01_collectives.ipynb)과 [07](07_moe.ipynb)을 먼저 보세요.
#
# 시간: 읽기 18분 + 연습 48분.
# %% tags=["parameters"] hidden=true
lang = "ko"
num_ranks = 4
device = "auto"
steps = 5
# %% [markdown] lang="en"
# Here are four ranks, two experts on each. The journey of rank 0's tokens; every rank does the same at
# the same time.
#
# ```mermaid
# flowchart LR
#   X[128 tokens<br>of rank 0] --> R{router<br>top 2} --> P[copies<br>sorted by expert]
#   P -->|all-to-all| E0[experts 0, 1<br>rank 0] & E1[experts 2, 3<br>rank 1] & E2[experts 4, 5<br>rank 2] & E3[experts 6, 7<br>rank 3]
#   E0 & E1 & E2 & E3 -->|all-to-all| S[weighted<br>sum]
# ```
#
# The way there is called **dispatch**, the way back **combine**. Only the router knows how many tokens
# go where. So before the tokens, their *numbers* travel. (This lesson stays on the CPU where there are
# GPUs, too: what it builds later needs memory that processes share.)
# %% [markdown] lang="ko" en="20ef4c70"
# 랭크(rank) 네 개에 전문가를 두 개씩 둡니다. 그림은 랭크 0의 토큰이 다녀오는 길입니다. 모든 랭크가 동시에 같은
# 일을 합니다.
#
# ```mermaid
# flowchart LR
#   X[랭크 0의<br>토큰 128개] --> R{라우터<br>top 2} --> P[전문가 순으로<br>정렬한 복사본]
#   P -->|올투올| E0[전문가 0, 1<br>랭크 0] & E1[전문가 2, 3<br>랭크 1] & E2[전문가 4, 5<br>랭크 2] & E3[전문가 6, 7<br>랭크 3]
#   E0 & E1 & E2 & E3 -->|올투올| S[가중합]
# ```
#
# 가는 길을 **디스패치**(dispatch), 오는 길을 **컴바인**(combine)이라고 합니다. 토큰이 어디로 몇 개 갈지는 라우터가
# 정한 뒤에야 압니다. 그래서 토큰보다 *개수*를 먼저 보냅니다. (이 레슨은 GPU가 있어도 CPU에서 돌립니다. 뒤에서
# 프로세스끼리 공유하는 메모리를 쓰기 때문입니다.)
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, explore, hint, lesson, predict, quiz, solution
from dlcourse.course.records import read_record
from dlcourse.figures.expert_parallel import check_ranks, figures_of_c4, num_all_to_all
from dlcourse.figures.expert_parallel import one_sided_ratio, sent_to_others, show_calls, show_drift
from dlcourse.figures.expert_parallel import show_equal, show_imbalance, show_latency
from dlcourse.figures.expert_parallel import show_libraries, show_overlap, show_published, show_race
from dlcourse.figures.expert_parallel import show_slowest, show_thousands, show_traffic
from dlcourse.figures.expert_parallel import tokens_on_the_wire
from dlcourse.peers import mpi
from dlcourse.peers.mpi import run_mpi
from dlcourse.peers.mpi_collectives import trip_seconds

lesson(lang=lang, name="08_expert_parallel")
check_ranks(num_ranks)
ranks = Ranks(num_ranks, device="cpu", preload="dlcourse.peers.shared_imports")
ranks.cell(f"steps = {steps}", record=False)
# %%
# %%ranks
from dlcourse.models.moe import MoE, combine, permute

N, C, E, K = 128, 256, 8, 2
torch.manual_seed(0)
moe = MoE(C, num_experts=E, top_k=K, hidden=512)
torch.manual_seed(rank)
x_NC = torch.randn(N, C)
# %% hidden=true
# %%ranks --fast
from copy import deepcopy

from dlcourse.models.moe import Experts

here = E // world_size
mine = Experts(C, here, 512)
with torch.no_grad():
    for own, whole in zip(mine.parameters(), moe.experts.parameters()):
        own.copy_(whole[rank * here : (rank + 1) * here])
# %% [markdown] lang="en"
# The idea in a few lines. `permute` and `combine` are those of lesson 07, and `experts` are the two of
# this rank. `all_to_all_single` sends rows of one tensor to all ranks, here a different number to each.
#
# Rows arrive sorted by *rank*; the experts want them sorted by *expert*: that is `order_G`. (M: copies
# of this rank's tokens; G: rows that its experts get.) Folded below is the class of the course,
# `dlcourse/parallel/expert.py`, which has a backward too.
# %% [markdown] lang="ko" en="a84b5e3e"
# 몇 줄이면 됩니다. `permute`와 `combine`은 레슨 07의 것이고, `experts`는 이 랭크에 있는 전문가 둘입니다.
# `all_to_all_single`은 텐서의 행을 모든 랭크에 나누어 보냅니다. 여기서는 랭크마다 보내는 행의 수가 다릅니다.
#
# 행은 *랭크* 순으로 도착하는데, 계산하려면 *전문가* 순이어야 합니다. 그 순서가 `order_G`입니다. (M은 이 랭크에 있는
# 토큰의 복사본 수, G는 이 랭크의 전문가가 받는 행의 수입니다.) 아래에 접어 둔 것은 역전파까지 하는 과정의 클래스
# `dlcourse/parallel/expert.py`입니다.
# %%
# %%ranks
def exchange(x, sent, received):
    y = x.new_empty(sum(received), C)
    dist.all_to_all_single(y, x, received, sent)
    return y


def expert_parallel_forward(x_NC, routing, experts):
    copies_M, counts_E = permute(routing.experts_NK, E)
    for_ranks, for_me = counts_E.view(world_size, -1), counts_E.new_empty(world_size, here)
    dist.all_to_all_single(for_me, for_ranks)
    sent, received = for_ranks.sum(1).tolist(), for_me.sum(1).tolist()
    x_GC = exchange(x_NC[copies_M // K], sent, received)
    order_G = torch.arange(E).remainder(here).repeat_interleave(for_me.flatten()).argsort(stable=True)
    y_GC = experts(x_GC[order_G], for_me.sum(0).tolist())[order_G.argsort()]
    return combine(exchange(y_GC, received, sent), copies_M, routing.weights_NK), sent
# %% hidden=true source="dlcourse.parallel.expert:Plan,ExpertParallel"

# %% [markdown] lang="en"
# A token here is 256 numbers of 4 bytes: 1 KiB. 128 tokens on each of 4 ranks, 2 copies of each.
#
# **Predict**: if the router spreads them evenly, how many bytes of tokens does one rank send to *other*
# ranks in one forward pass, there and back together?
# %% [markdown] lang="ko" en="9d5d09ad"
# 여기서 토큰 하나는 4바이트 수 256개, 곧 1 KiB입니다. 랭크 4개에 토큰이 128개씩 있고 복사본은 토큰마다 둘입니다.
#
# **예측해 보세요.** 라우터가 고르게 나눈다면, 순전파 한 번에 랭크 하나가 *다른* 랭크로 보내는 토큰은 몇
# 바이트일까요? 가는 길과 오는 길을 합친 것입니다.
# %%
predict("08.bytes")
# %%
# %%ranks --as trip
with torch.no_grad():
    y_NC, sent = expert_parallel_forward(x_NC, moe.router(x_NC), mine)
# %%
compare("08.bytes", sent_to_others(trip))
show_traffic(ranks["sent"], trip)
# %% [markdown] lang="en"
# A rank's own experts cost nothing to reach, so about 3 of 4 copies leave. Rows of the table differ: nobody
# promised an even spread. The numbers that went ahead, two of 8 bytes to each of three ranks, are next to nothing.
#
# ## The same as one process?
#
# Now the real thing: a GPT on text whose feed-forward layer is a `MoE`, its experts divided over four
# ranks by the course's class. Against it one process with all experts and the tokens of all ranks.
# %% [markdown] lang="ko" en="20223b8c"
# 자기 랭크의 전문가에게는 보낼 것이 없습니다. 그래서 복사본 넷 가운데 셋쯤이 랭크를 떠납니다. 표의 행은 서로
# 다릅니다. 라우터가 고르게 나눈다는 보장은 없습니다. 먼저 보낸 개수는 세 랭크에 8바이트 수 두 개씩이라 무시할 만합니다.
#
# ## 단일 프로세스와 같을까?
#
# 이제 실제 모델입니다. 피드포워드 층이 `MoE`인 GPT를 글로 학습하면서, 과정의 클래스로 전문가를 랭크 넷에
# 나눕니다. 비교 대상은 전문가를 모두 가지고 모든 랭크의 토큰을 읽는 단일 프로세스입니다.
# %%
# %%ranks
from dlcourse.corpus import Corpus
from dlcourse.formulas.sizes import ArchitectureConfig
from dlcourse.models.architectures import ArchitectureGPT
from dlcourse.parallel.expert_groups import ExpertDataParallel, make_expert_mesh

sizes = ArchitectureConfig(block_size=64, n_layer=1, n_embd=64, feed_forwards=("moe",), expert_hidden=128)
mesh = make_expert_mesh(data=1, expert=world_size)
model = ExpertDataParallel(ArchitectureGPT(sizes), mesh)
corpus = Corpus()
# %% [markdown] lang="en"
# **Predict**: how often does this one layer call all-to-all in a training step, forward and backward
# together? (The numbers go by an all-gather here, and are not counted.)
# %% [markdown] lang="ko" en="4a79e575"
# **예측해 보세요.** 이 층 하나는 학습 한 스텝, 곧 순전파와 역전파에서 올투올(all-to-all)을 몇 번 부를까요? (개수는
# 여기서 올게더로 보내므로 세지 않습니다.)
# %%
predict("08.calls")
# %%
# %%ranks --as forward
loss = model(*corpus.batch(0, rank=rank, world_size=world_size, micro_batch=8, block=64))
# %%
# %%ranks --as backward
loss.backward(retain_graph=True)
# %% hidden=true
# %%ranks --fast
from dlcourse.parallel.expert import ExpertParallel

def new_pair():
    pair = ExpertDataParallel(ArchitectureGPT(sizes), mesh), ArchitectureGPT(sizes)
    return *pair, [torch.optim.SGD(m.parameters(), lr=0.1) for m in pair]


def batch_of(step, rows=8, all_ranks=False):
    if all_ranks:
        return corpus.batch(step, micro_batch=rows * world_size, block=64)
    return corpus.batch(step, micro_batch=rows, block=64, rank=rank, world_size=world_size)


def worst(number):
    number = torch.as_tensor(number, dtype=torch.float64).nan_to_num(torch.inf)
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    return number.item()
# %% hidden=true
# %%ranks --fast
def apart(ours, alone, of):
    off = {"dense": 0.0, "experts": 0.0}
    for mine, whole in zip(ours.module.parameters(), alone.parameters()):
        got, want = of(mine), of(whole)
        kind = "dense" if got.shape == want.shape else "experts"
        want = want if kind == "dense" else want.chunk(world_size)[rank]
        off[kind] = max(off[kind], (got - want).abs().nan_to_num(torch.inf).max().item())
    return {kind: worst(value) for kind, value in off.items()}


def both_backward(ours, alone, step):
    losses = ours(*batch_of(step)), alone(*batch_of(step, all_ranks=True))
    losses[0].backward(), losses[1].backward()
    ours.sync_gradients()
    mean = losses[0].detach() / world_size
    dist.all_reduce(mean)
    return worst((mean - losses[1].detach()).abs())
# %% hidden=true
# %%ranks --fast
ours, alone, optimizers = new_pair()
off = {"loss": both_backward(ours, alone, 0)} | apart(ours, alone, lambda p: p.grad)
for step in range(1, steps + 1):
    for optimizer in optimizers:
        optimizer.step(), optimizer.zero_grad()
    both_backward(ours, alone, step)
off["steps"] = max(apart(ours, alone, lambda p: p.detach()).values())
# %%
compare("08.calls", num_all_to_all(forward, backward))
show_calls(forward, backward)
# %%
show_equal(ranks["off"][0])
# %% [markdown] lang="en"
# Equal, to rounding. Capacity and balance loss would count over all ranks, too.
#
# "Two all-to-alls a layer", as one often reads, counts the forward alone: gradients make the journey as
# well, in the opposite direction.
#
# ## Everybody waits for the fullest
#
# How even is it? The same model, trained for 30 steps in three ways: as it is; with the balance loss of
# lesson 07; and with *forced* balance, where a counter deals out the tokens and the router has no say.
# %% [markdown] lang="ko" en="b4e6637a"
# 반올림 오차를 빼면 같습니다. 용량이나 균형 손실을 쓰더라도 모든 랭크의 토큰을 함께 셉니다.
#
# 흔히 말하는 "층마다 올투올 두 번"은 순전파만 센 것입니다. 그래디언트도 같은 길을 거꾸로 다녀옵니다.
#
# ## 가장 바쁜 랭크를 모두가 기다린다
#
# 토큰은 얼마나 고르게 나뉠까요? 같은 모델을 세 방식으로 30스텝씩 학습합니다. 하나는 그대로, 하나는 레슨 07의
# 균형 손실을 더해서, 하나는 *강제 균형*으로 합니다. 강제 균형에서는 라우터를 무시하고 토큰을 순번대로 나눕니다.
# %% hidden=true
# %%ranks --fast
from dlcourse.models.moe import balance_loss
from dlcourse.parallel.expert_groups import force_balance


def trained(kind):
    model = ExpertDataParallel(ArchitectureGPT(sizes), mesh)
    layer = next(m for m in model.modules() if isinstance(m, ExpertParallel))
    forced = force_balance(model) if kind == "forced" else []
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(30):
        loss = model(*batch_of(step))
        loss = loss + 0.03 * balance_loss(layer.routing, layer.asked_E) * (kind == "loss")
        loss.backward(), model.sync_gradients()
        adam.step(), adam.zero_grad()
    return model, layer, forced
# %% hidden=true
# %%ranks --fast
import time


def sleep_by_rows(experts, args):
    time.sleep(50e-6 * len(args[0]))


def rows_and_seconds(kind):
    model, layer, forced = trained(kind)
    layer.experts.register_forward_pre_hook(sleep_by_rows)
    taken = []
    for _ in range(3):
        dist.barrier()
        start = time.perf_counter()
        with torch.no_grad():
            model(*batch_of(30))
        taken.append(time.perf_counter() - start)
    return layer.rows_p.tolist(), worst(min(taken))
# %% hidden=true
# %%ranks --fast
measured = {kind: rows_and_seconds(kind) for kind in ("natural", "loss", "forced")}
rows = {kind: counts for kind, (counts, _) in measured.items()}
seconds = {kind: taken for kind, (_, taken) in measured.items()}
# %%
show_imbalance(ranks["rows"][0])
# %%
show_slowest(ranks["rows"][0], ranks["seconds"][0])
# %% [markdown] lang="en"
# Here the ranks share a few cores, and a full one only takes over those of ranks that wait. So in the table each
# expert *sleeps* 50 microseconds a row. As on GPUs, a layer ends when its fullest rank does.
#
# Mind this when you read speeds of others: published runs of MoE models mostly force balance, and real
# routing was 8 to 20% slower [2].
# %% [markdown] lang="ko" en="f066fce3"
# 여기서는 랭크 넷이 코어 몇 개를 나눠 쓰므로, 바쁜 랭크는 쉬는 랭크 몫의 코어까지 쓸 뿐입니다. 그래서 표의
# 시간은 전문가를 행마다 50마이크로초씩 *재우고*(sleep) 쟀습니다. GPU에서처럼, 가장 바쁜 랭크가 끝나야 층이 끝납니다.
#
# 다른 곳의 속도를 읽을 때 조심하세요. 공개된 MoE 속도는 대개 강제 균형으로 잰 것이고, 실제 라우팅에서는 8-20%
# 느립니다[2].
# %% hidden=true
# %%ranks --fast
added = 0.0


def late_all_to_all(*args, **options):
    time.sleep(added)
    dist.all_to_all_single(*args, **options)


def step_seconds(model, number):
    taken = []
    for _ in range(number):
        dist.barrier()
        start = time.perf_counter()
        model(*batch_of(0)).backward()
        taken.append(time.perf_counter() - start)
    return worst(min(taken))
# %% hidden=true
# %%ranks --fast
late = ExpertDataParallel(ArchitectureGPT(sizes), mesh, exchange=late_all_to_all)
steps_of = {}
for added in (0.0, 0.01, 0.02):
    steps_of[added] = step_seconds(late, 10)
# %% [markdown] lang="en"
# ## What a message costs before its first byte
#
# Gloo's all-to-all has two sides: sender and receiver meet. DeepEP, DeepSeek's library for this journey,
# is **one-sided**: put the tokens straight into the other's memory, then raise a flag. Nobody asks, nobody
# answers.
#
# ```mermaid
# sequenceDiagram
#   participant A as rank 0
#   participant M as memory of rank 1
#   participant B as rank 1
#   A->>M: put tokens
#   A->>M: raise flag
#   B->>M: look: the flag is up
#   B->>B: take tokens
# ```
#
# Or without a flag, by **payload**: each word of 8 bytes carries half data, half the number of the call.
# Whoever sees the number has the data.
#
# Four ways race below: Gloo; our one-sided all-to-all, for rows of any number; and *low latency*, which
# keeps room for so many rows from each rank, so that no counts go first, by flag and by payload. Where
# MPI is installed, its all-to-all stands beside them, in processes of its own.
# %% [markdown] lang="ko" en="fee78406"
# ## 첫 바이트가 가기 전에 드는 비용
#
# Gloo의 올투올은 양쪽이 만나야 합니다. 토큰을 주고받으려고 DeepSeek이 만든 라이브러리 DeepEP는 **단방향
# 통신**(one-sided)을 씁니다. 토큰을 상대의 메모리에 바로 넣고 플래그(flag)를 올립니다. 상대에게 묻지도, 답을
# 기다리지도 않습니다.
#
# ```mermaid
# sequenceDiagram
#   participant A as 랭크 0
#   participant M as 랭크 1의 메모리
#   participant B as 랭크 1
#   A->>M: 토큰 넣기
#   A->>M: 플래그 올리기
#   B->>M: 플래그가 올라왔는지 보기
#   B->>B: 토큰 꺼내기
# ```
#
# 플래그 없이 **페이로드**(payload)만으로도 됩니다. 8바이트 워드마다 절반에는 데이터, 절반에는 호출 번호를
# 담습니다. 번호가 보이면 데이터도 와 있습니다.
#
# 아래에서는 네 방식을 견줍니다. Gloo, 행의 수에 제한이 없는 우리의 단방향 올투올, 그리고 플래그와 페이로드를 쓰는
# *저지연* 방식 둘입니다. 저지연 방식은 보내는 랭크마다 받을 자리를 정해 두므로 개수를 먼저 보내지 않아도 됩니다.
# MPI가 있으면 함께 견줍니다(프로세스는 따로).
# %% hidden=true source="dlcourse.collectives.one_sided:all_to_all,put,take"

# %% hidden=true
# %%ranks --fast
from functools import partial

from dlcourse.collectives import one_sided
from dlcourse.collectives.low_latency import LowLatency
from dlcourse.collectives.places import ready_ways


def trips_of(num_rows):
    x, y, z = torch.randn(3, num_rows, C)
    each = [num_rows // world_size] * world_size

    def there_and_back(all_to_all):
        all_to_all(y, x, each, each), all_to_all(z, y, each, each)

    trips = {"gloo": partial(there_and_back, dist.all_to_all_single)}
    trips["one_sided"] = partial(there_and_back, one_sided.all_to_all)
    for ready in ready_ways():
        low = LowLatency(num_rows // world_size, C, ready=ready)
        trips[ready] = lambda low=low: low.combine(low.dispatch(x, each)[0])
    return trips
# %% hidden=true
# %%ranks --fast
def race(num_rows, rounds):
    trips = trips_of(num_rows)
    taken = {name: [] for name in trips}
    for _ in range(rounds):
        for name, trip in trips.items():
            dist.barrier()
            start = time.perf_counter()
            trip()
            taken[name].append(time.perf_counter() - start)
    return {name: worst(min(times)) for name, times in taken.items()}
# %% hidden=true
# %%ranks --fast
trip_times = {1024 * num_rows: race(num_rows, 20) for num_rows in (world_size, 32, 128, 512, 2048, 4096)}
# %% hidden=true
by_mpi = None
if not mpi.missing(num_ranks):
    sizes = list(ranks["trip_times"][0])
    by_mpi = run_mpi(trip_seconds, sizes, 256, 20, num_ranks=num_ranks)[0]
# %%
show_race(ranks["trip_times"][0], by_mpi)
# %% [markdown] lang="en"
# On the left Gloo's line is flat: 4 KiB take about as long as 32. That is latency, and bytes hardly count.
# Through shared memory and without a meeting, most of it is gone. Not all of that is due to the meeting: MPI's
# all-to-all has two sides and, on a quiet machine, is far quicker than Gloo. It is C, in shared memory; Gloo uses
# sockets. On the right bytes decide, and payload (on x86 only), which sends twice as many, loses its lead.
#
# ## What breaks, and how it says so
#
# One rank's router gets NaN for a few tokens. Where should they go? If that rank stopped alone, all
# others would wait for its rows for ever.
# %% [markdown] lang="ko" en="648962fb"
# 왼쪽에서 Gloo의 선은 평평합니다. 4 KiB나 32 KiB나 비슷하게 걸립니다. 이것이 지연 시간이고, 바이트 수는 거의
# 상관없습니다. 공유 메모리를 쓰고 양쪽이 만나지 않으면 대부분 사라집니다. 다만 만나는 비용이 전부는 아닙니다. MPI의
# 올투올은 양쪽이 만나는데도 한가한 컴퓨터에서는 Gloo보다 훨씬 빠릅니다. MPI는 C로 공유 메모리를 쓰고, Gloo는 소켓을
# 거칩니다. 오른쪽에서는 바이트 수가 시간을 정합니다. 두 배를 보내는 페이로드 방식(x86에서만)의 이점은 사라집니다.
#
# ## 무엇이 깨지고, 어떻게 알려 주나
#
# 한 랭크의 라우터가 토큰 몇 개에서 NaN을 냈다고 합시다. 이 토큰은 어디로 보내야 할까요? 그 랭크만 멈추면 나머지는
# 오지 않을 행을 끝없이 기다립니다.
# %%
# %%ranks --fails "8 of 512 tokens"
def spoil(layer, inputs):
    return inputs[0].index_fill(1, torch.tensor([3]), float("nan"))


spoilt = ExpertDataParallel(ArchitectureGPT(sizes), mesh)
if rank == world_size - 1:
    spoilt.module.blocks[0].mlp.register_forward_pre_hook(spoil)
spoilt(*batch_of(0))
# %% [markdown] lang="en"
# With its counts, each rank also tells how many of its tokens have no valid logits. So all ranks refuse
# together, before a token is sent. (Deeper kills a rank between put and flag.)
#
# The next fault says nothing. With experts *and* data parallelism, 2 × 2 ranks: an expert has two copies,
# and averaging its gradient over these two, as DDP would, looks right. But its tokens came from *four*
# ranks.
# %% [markdown] lang="ko" en="337e4922"
# 랭크마다 개수를 알릴 때 라우터의 값이 잘못된 토큰이 몇 개인지도 알립니다. 그래서 토큰을 보내기 전에 모든 랭크가
# 함께 거부합니다. (랭크가 토큰을 넣고 플래그를 올리기 전에 죽는 경우는 더 깊이에서 봅니다.)
#
# 다음 실수는 오류를 내지 않습니다. 전문가 병렬화와 데이터 병렬화를 함께 써서 랭크가 2 × 2개라고 합시다.
# 전문가마다 복제본이 둘이니, DDP처럼 두 복제본의 그래디언트를 평균하면 맞는 것 같습니다. 하지만 토큰은 *네* 랭크에서
# 왔습니다.
# %%
# %%ranks --fast
from dlcourse.parallel.sendable import cut_parameters

square = make_expert_mesh(data=2, expert=world_size // 2)


def averaged_over_copies(model):
    model.sync_gradients()
    for parameter in cut_parameters(model.module):
        parameter.grad *= world_size / 2
# %% hidden=true
# %%ranks --fast
from dlcourse.parallel.replicas import replica_drift


def drifts(sync, optimizer, lr):
    model, alone = ExpertDataParallel(ArchitectureGPT(sizes), square), ArchitectureGPT(sizes)
    steppers = [optimizer(m.parameters(), lr=lr) for m in (model, alone)]
    for step in range(10):
        model(*batch_of(step, 2)).backward(), sync(model)
        alone(*batch_of(step, 2, all_ranks=True)).backward()
        for stepper in steppers:
            stepper.step(), stepper.zero_grad()
    here, off = square.get_local_rank("expert"), 0.0
    for ours, whole in zip(model.module.parameters(), alone.parameters()):
        want = whole if whole.shape == ours.shape else whole.chunk(world_size // 2)[here]
        off = max(off, (ours - want).abs().nan_to_num(torch.inf).max().item())
    between = replica_drift(model.module, process_group=square.get_group("data"))
    return between, worst(off)
# %% hidden=true
# %%ranks --fast
syncs = {"right": ExpertDataParallel.sync_gradients, "wrong": averaged_over_copies}
optimizers = {"SGD": (torch.optim.SGD, 0.1), "AdamW": (torch.optim.AdamW, 1e-3)}
drift = {
    f"{name}.{which}": drifts(sync, *optimizer)
    for name, optimizer in optimizers.items()
    for which, sync in syncs.items()
}
# %%
show_drift(ranks["drift"][0], ranks=num_ranks)
# %% [markdown] lang="en"
# The wrong scale raises nothing, and the copies agree with each other: a check for drift between replicas
# finds nothing. With SGD the experts just learn at twice the rate. Adam divides a gradient by its own
# size, so it hides most of the fault.
#
# Clip with the course's `clip_grad_norm_` (`parallel/clipping.py`). Torch's own sees the experts of one
# rank only: another norm on each, and dense copies drift apart in silence.
#
# ## Beside the real libraries
#
# The same layer in DeepSpeed's `MoE` and in a version with torch's DTensor, same weights, same tokens.
# `exchange=` puts one-sided puts under ours, then low latency, by which the counts go, too. Forward and
# backward, in turns:
# %% [markdown] lang="ko" en="3a6afb73"
# 배율이 틀려도 오류가 없고 복제본끼리는 같습니다. 복제본이 어긋나는지 검사해도 드러나지 않습니다. SGD에서는
# 전문가만 두 배의 학습률로 배웁니다. Adam은 그래디언트를 자기 크기로 나누므로 실수를 거의 다 숨깁니다.
#
# 그래디언트를 클리핑할 때는 과정의 `clip_grad_norm_`(`parallel/clipping.py`)을 쓰세요. torch의 함수는 자기 랭크의
# 전문가만 봅니다. 랭크마다 노름이 달라서, 복제본이어야 할 층이 오류 없이 어긋납니다.
#
# ## 실제 라이브러리와 나란히
#
# 같은 층을 DeepSpeed의 `MoE`, 그리고 torch의 DTensor로도 만들었습니다. 가중치도 토큰도 같습니다. `exchange=`로
# 우리 층 아래에 단방향 통신을, 그다음에는 개수까지 나르는 저지연 방식을 넣습니다. 구현을 번갈아 가며 순전파와
# 역전파를 함께 잽니다.
# %%
# %%ranks --fast
from dlcourse.collectives.low_latency_exchange import LowLatencyExchange
from dlcourse.peers.expert_parallel import layers, step


def same_moe():
    torch.manual_seed(0)
    return MoE(C, num_experts=E, top_k=K, hidden=512)


low = LowLatencyExchange(capacity=len(x_NC) * K)
libraries = layers(same_moe, {"one-sided": one_sided.all_to_all, "low latency": low})
# %% hidden=true
# %%ranks --fast
def library_step(layer):
    dist.barrier()
    start = time.perf_counter()
    y = step(layer, x_NC)
    return y, worst(time.perf_counter() - start)


library_times = {name: [] for name in libraries}
for _ in range(15):
    for name, layer in libraries.items():
        y, taken = library_step(layer)
        library_times[name].append(taken)
want = step(libraries["ours"], x_NC)
library_apart = {name: worst((step(m, x_NC) - want).abs().max()) for name, m in libraries.items()}
# %%
show_libraries(ranks["library_times"][0], ranks["library_apart"][0])
# %% [markdown] lang="en"
# The same answers. Ours three times, which differ only in how rows and counts are carried: the time between
# them is communication. With DeepSpeed all experts' buffers are as long as the busiest one's.
#
# ## A thousand ranks
#
# Two experts of a token may share a rank: then it needs to go there only **once**. 256 experts over 8
# ranks, 8 for each token. **Predict**: to how many ranks does a token go, on average, its own among them?
# %% [markdown] lang="ko" en="9de6f441"
# 답은 같습니다. 우리 층 셋은 계산이 같고 행과 개수를 보내는 방법만 다릅니다. 그래서 시간 차이는 모두 통신에서
# 옵니다. DeepSpeed에서는 모든 전문가의 버퍼가 가장 바쁜 전문가의 것만큼 깁니다.
#
# ## 랭크가 천 개라면
#
# 토큰이 고른 전문가 둘이 같은 랭크에 있을 수 있습니다. 그러면 **한 번만** 보내면 됩니다. 전문가 256개를 랭크 8개에
# 나누고 토큰마다 8개를 고릅니다. **예측해 보세요.** 자기 랭크도 세면 토큰은 평균 몇 개의 랭크로 갈까요?
# %%
predict("08.ranks")
# %%
# %%ranks --fast
owners = torch.rand(20_000, 256).topk(8).indices // 32
visited = sum((owners == r).any(1).float().mean().item() for r in range(8))
# %%
compare("08.ranks", round(ranks["visited"][0], 2))
sizes_to_try = [2, 4, 8, 16, 32, 64, 128, 256]
explore(tokens_on_the_wire, ranks=sizes_to_try, top_k=[1, 2, 4, 8])
# %% [markdown] lang="en"
# Move the sliders, by mouse or arrow keys: DeepSeek-V3's layer by formula, with an *assumed* wire of 50
# GB/s for each GPU and 2 microseconds a message. With 8 experts a token, sending once saves a third at 8
# ranks, and little where experts are spread thinly.
#
# Then the course's own class as one rank of 2,048, on tensors without values (meta): GPT-2 large with 2,048
# experts in each layer, 8 for a token, balance forced. Recorded by `dlcourse scale 08` (bytes are exact
# on any machine).
# %% [markdown] lang="ko" en="6c5406ad"
# 마우스나 화살표 키로 슬라이더를 움직여 보세요. DeepSeek-V3의 층을 공식으로 계산합니다. GPU마다 50 GB/s,
# 메시지마다 2마이크로초라고 *가정*했습니다. 토큰마다 전문가 8개를 쓰고 랭크도 8개일 때, 한 번만 보내면 3분의 1을
# 아낍니다. 전문가를 더 많은 랭크에 흩어 놓을수록 덜 아낍니다.
#
# 이번에는 과정의 클래스를 랭크 2,048개 가운데 하나로, 값이 없는 텐서(meta)로 돌립니다. GPT-2 large의 층마다 전문가가
# 2,048개이고 토큰은 8개를 씁니다. 강제 균형입니다. `dlcourse scale 08`로 기록했습니다(바이트 수는 어느
# 컴퓨터에서나 정확합니다).
# %%
show_thousands(read_record("experts_at_scale"))
# %% [markdown] lang="en"
# The more ranks share the experts, the fewer a rank holds and averages. What tokens cost hardly grows: all
# but 1/EP of the copies leave, however many ranks there are. But the counts are no longer next to
# nothing: our class tells every rank those of all experts, so that capacity and balance see them.
#
# Now what DeepEP reaches, **as its authors publish it**. V2 counts bytes in another way: do not compare it
# with V1.
# %% [markdown] lang="ko" en="15f774fe"
# 전문가를 더 많은 랭크에 나눌수록 랭크 하나가 맡아 그래디언트를 평균할 전문가는 줄어듭니다. 토큰을 보내는 비용은
# 거의 늘지 않습니다. 랭크가 몇 개든 복사본의 1/EP만 남고 모두 떠납니다. 다만 개수는 이제 무시할 수 없습니다. 용량과 균형을 전체에서
# 세려고, 우리 클래스가 모든 전문가의 개수를 모든 랭크에 알리기 때문입니다.
#
# 다음은 DeepEP의 속도로, **만든 사람들이 공개한 값**입니다. V2는 바이트를 다르게 세므로 V1과 견주지 마세요.
# %%
show_published(read_record("deepep"))
# %% [markdown] lang="en"
# ## On a GPU cluster
#
# With 32 times the GPUs, the low-latency dispatch takes 2.5 times as long: a token still goes to 8
# experts, without a meeting. Between machines RDMA (the network card writes into the other's
# memory) has about a third of NVLink's rate inside. So a token crosses to another machine once, and is
# copied to its experts there; DeepSeek-V3 allows it 4 machines [1]. The journey hides behind the shared
# expert (Deeper) or another micro-batch.
#
# Training sends thousands of tokens at a time: bytes decide. Generating text sends few: latency decides,
# and one-sided pays most. Not run here: NVLink, RDMA, torch's symmetric memory, which needs CUDA.
#
# What is left of the two claims tested here?
# %% [markdown] lang="ko" en="469d567d"
# ## GPU 클러스터에서는
#
# GPU가 32배로 늘어도 저지연 디스패치는 2.5배만 걸립니다. 토큰은 여전히 전문가 8개로 가고, 만나기를 기다리지
# 않습니다. 컴퓨터 사이의 RDMA(네트워크 카드가 상대의 메모리에 바로 쓰는 방식)는 컴퓨터 안 NVLink의 약 3분의 1
# 속도입니다. 그래서 토큰은 다른 컴퓨터로 한 번만 건너가고, 거기서 전문가마다 복사합니다. DeepSeek-V3에서는 토큰
# 하나가 4대까지만 갑니다[1]. 보내는 시간은 공유 전문가(더 깊이)나 다른 마이크로배치를 계산하면서 숨깁니다.
#
# 학습에서는 토큰을 수천 개씩 보내므로 바이트 수가 시간을 정합니다. 글을 생성할 때는 몇 개뿐이라 지연 시간이
# 정하고, 단방향 통신이 유리합니다. NVLink, RDMA, torch의 대칭 메모리(symmetric memory)는 여기서 돌리지
# 못했습니다.
#
# 두 주장은 얼마나 맞을까요?
# %%
claim("C4", **figures_of_c4(forward, backward, ranks["steps_of"][0], ranks["trip_times"][0]))
claim("C7", one_sided=one_sided_ratio(ranks["trip_times"][0]))
# %% [markdown] lang="en"
# ## Exercises
#
# Fill in the stub, run it, run the check. `hint("08.splits")` helps step by step;
# `solution("08.splits")` shows one answer. Experts are spread as above: neighbours in number share a
# rank.
#
# **1. `08.splits`** (3 minutes). `experts`, (N, K), are the choices of this rank's tokens. Return two
# lists with a number for each rank: copies that this rank sends there, and copies that come from
# there. Only counts may travel.
# %% [markdown] lang="ko" en="7e489839"
# ## 연습 문제
#
# 빈 곳을 채워 실행하고 check 셀을 실행하세요. `hint("08.splits")`는 한 단계씩 도와주고,
# `solution("08.splits")`은 답 하나를 보여 줍니다. 전문가는 위에서처럼 이어진 번호끼리 한 랭크에 있습니다.
#
# **1. `08.splits`** (3분). `experts`는 이 랭크의 토큰이 고른 전문가이고 모양은 (N, K)입니다. 랭크마다 수가
# 하나씩 들어 있는 리스트 둘을 돌려주세요. 그 랭크로 보낼 복사본 수와 그 랭크에서 올 복사본 수입니다. 개수만
# 주고받아야 합니다.
# %% exercise="08.splits"
# %%ranks
def splits(experts, num_experts):
    raise NotImplementedError


# %%
check("08.splits")
# %% [markdown] lang="en"
# **2. `08.once`** (15 minutes). Two experts of a token may share a rank: then one copy of the token is
# enough. `x`, (N, C), are this rank's tokens. Return the tokens that its experts want, its own among
# them, sorted by the rank they come from and then by token, and a mask, (tokens, experts of this rank):
# which expert wants which. Target: at most 1.1 times the fewest bytes; the mask is small beside a token.
# %% [markdown] lang="ko" en="98845ec7"
# **2. `08.once`** (15분). 토큰이 고른 전문가 둘이 같은 랭크에 있을 수 있습니다. 그러면 토큰은 한 번만 보내면
# 됩니다. `x`는 이 랭크의 토큰이고 모양은 (N, C)입니다. 이 랭크의 전문가가 원하는 토큰을 보낸 랭크 순으로, 그
# 안에서는 토큰 순으로 돌려주세요. 자기 토큰도 들어갑니다. 어느 전문가가 어느 토큰을 원하는지를 나타내는 (토큰, 이
# 랭크의 전문가) 모양의 마스크도 함께 돌려주세요. 목표: 최소 바이트의 1.1배 이하입니다. 마스크는 토큰에 비하면
# 작습니다.
# %% exercise="08.once"
# %%ranks
def dispatch(x, experts, num_experts):
    raise NotImplementedError


# %%
check("08.once")
# %% [markdown] lang="en"
# **3. `08.combine`** (10 minutes). Answers come as messages `(rank, rows)` in any order, each with its
# rows as they were sent; a rank that was sent nothing sends none. `copies` is what `permute` gave: row i
# of all that was sent, sorted by rank, is copy `copies[i]`. `send` says how many rows went to each rank;
# `weights` is (N, K). Return each token's weighted sum, (N, C): the same **bits** in whatever order
# messages arrive.
# %% [markdown] lang="ko" en="9e8142f2"
# **3. `08.combine`** (10분). 답은 `(rank, rows)` 메시지로 아무 순서로나 오지만, 메시지 안의 행은 보낸
# 순서대로입니다. 아무것도 받지 못한 랭크는 답하지 않습니다. `copies`는 `permute`가 준 것이어서, 랭크 순으로 보낸
# 행 가운데 i번째가 복사본 `copies[i]`입니다. `send`는 랭크마다 보낸 행의 수, `weights`는 (N, K)입니다. 토큰마다
# 가중합을 (N, C)로 돌려주세요. 메시지가 어떤 순서로 와도 **비트까지** 같아야 합니다.
# %% exercise="08.combine"
# %%ranks
def combine_answers(arrivals, copies, send, weights):
    raise NotImplementedError


# %%
check("08.combine")
# %% [markdown] lang="en"
# **4. `08.gradients`** (20 minutes). Each rank's loss is the mean over its own tokens, and `backward()`
# has run. `dense` parameters are on every rank; `experts` on the ranks of `expert_group`, which hold
# copies of the same experts. Make every `.grad` that of one process, whose loss is the mean of the
# ranks' losses. An expert without tokens has `.grad` None. Target: no more bytes than needed. The code
# below is a common mistake.
# %% [markdown] lang="ko" en="6d722961"
# **4. `08.gradients`** (20분). 랭크마다 손실은 자기 토큰의 평균이고 `backward()`는 끝났습니다. `dense`
# 파라미터는 모든 랭크에 있습니다. `experts`는 같은 전문가의 복제본을 가진 `expert_group`의 랭크에만 있습니다.
# 모든 `.grad`를 단일 프로세스의 것으로 만드세요. 단일 프로세스의 손실은 랭크별 손실의 평균입니다. 토큰을 받지
# 못한 전문가의 `.grad`는 None입니다. 필요한 만큼만 보내야 합니다. 아래 코드는 흔한 실수입니다.
# %% exercise="08.gradients"
# %%ranks
def sync_gradients(dense, experts, expert_group):
    for parameter in dense + experts:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size


# %%
check("08.gradients")
# %% [markdown] lang="en"
# ## In five lines
#
# 1. Experts stay, tokens travel: counts, dispatch, experts, combine. The result is that of one process.
# 2. Four all-to-alls a layer and step: two in forward, two in backward.
# 3. The fullest rank sets the pace. Forced balance flatters.
# 4. Small messages: latency. One-sided puts and flags remove the meeting.
# 5. Experts' gradients are sums over their copies, divided by *all* ranks.
#
# Sources: [1] [DeepSeek-V3 Technical Report, 2024](https://arxiv.org/abs/2412.19437), sections 2.1, 4.2.
# [2] [Megatron Bridge, performance recipes](https://github.com/NVIDIA-NeMo/Megatron-Bridge).
# [DeepEP](https://github.com/deepseek-ai/DeepEP), [GShard](https://arxiv.org/abs/2006.16668),
# [DeepSpeed-MoE](https://arxiv.org/abs/2201.05596).
# %% [markdown] lang="ko" en="b89b12f1"
# ## 다섯 줄 요약
#
# 1. 전문가는 그대로 있고 토큰이 다닙니다. 개수, 디스패치, 전문가, 컴바인 순입니다. 결과는 단일 프로세스와 같습니다.
# 2. 층마다 한 스텝에 올투올 네 번입니다. 순전파에서 두 번, 역전파에서 두 번입니다.
# 3. 가장 바쁜 랭크가 속도를 정합니다. 강제 균형으로 재면 실제보다 좋게 나옵니다.
# 4. 작은 메시지에서는 지연 시간이 중요합니다. 단방향으로 넣고 플래그를 올리면 만나지 않아도 됩니다.
# 5. 전문가의 그래디언트는 복제본끼리 더하고 *모든* 랭크 수로 나눕니다.
#
# 출처: [1] [DeepSeek-V3 Technical Report, 2024](https://arxiv.org/abs/2412.19437), 2.1절과 4.2절.
# [2] [Megatron Bridge, performance recipes](https://github.com/NVIDIA-NeMo/Megatron-Bridge).
# [DeepEP](https://github.com/deepseek-ai/DeepEP), [GShard](https://arxiv.org/abs/2006.16668),
# [DeepSpeed-MoE](https://arxiv.org/abs/2201.05596).
# %%
quiz()
# %% [markdown] lang="en"
# ## Deeper
#
# Not needed for what follows. Run the cells above first.
# %% [markdown] lang="ko" en="0f4ee75a"
# ## 더 깊이
#
# 다음 레슨에 꼭 필요하지는 않습니다. 위의 셀을 먼저 실행하세요.
# %% [markdown] lang="en"
# ### The shared expert fills the wait
#
# A shared expert, which every token uses (lesson 07), needs no journey: every rank has it. So `ExpertParallel` starts the dispatch, computes
# the shared expert, and only then waits. Here with imposed times: each all-to-all takes 20 ms, the shared
# expert 15 ms.
# %% [markdown] lang="ko" en="e498a56e"
# ### 기다리는 동안 공유 전문가를
#
# 모든 토큰이 쓰는 공유 전문가(레슨 07)는 모든 랭크에 있어 토큰을 보낼 필요가 없습니다. 그래서 `ExpertParallel`은 디스패치를 시작해 놓고
# 공유 전문가를 계산한 다음에야 기다립니다. 여기서는 시간을 정해 놓았습니다. 올투올은 20 ms, 공유 전문가는 15 ms가
# 걸립니다.
# %% hidden=true
# %%ranks --fast
class Wire:
    def __init__(self, work):
        self.work, self.due = work, time.perf_counter() + 0.02

    def wait(self):
        self.work.wait()
        time.sleep(max(0, self.due - time.perf_counter()))


def in_background(*args, **options):
    return Wire(dist.all_to_all_single(*args, async_op=True, **options))


def at_once(*args, **options):
    in_background(*args, **options).wait()
# %% hidden=true
# %%ranks --fast
from dlcourse.parallel.expert import expert_parallel


class SharedExpert(nn.Linear):
    def forward(self, x):
        time.sleep(0.015)
        return super().forward(x)


def layer_seconds(exchange):
    layer = MoE(C, num_experts=E, top_k=K, hidden=64, shared=SharedExpert(C, C))
    layer, taken = expert_parallel(layer, exchange=exchange), []
    for _ in range(5):
        dist.barrier()
        start = time.perf_counter()
        layer(torch.randn(N, C))
        taken.append(time.perf_counter() - start)
    return worst(min(taken))
# %% hidden=true
# %%ranks --fast
overlap = {"at_once": layer_seconds(at_once), "background": layer_seconds(in_background)}
# %%
show_overlap(ranks["overlap"][0])
# %% [markdown] lang="en"
# ### Latency, made longer on purpose
#
# Each all-to-all of the GPT above, delayed by 10 and by 20 ms. There are four in a step, so it grows by
# four times the delay, however few or many bytes travel.
# %% [markdown] lang="ko" en="d749a088"
# ### 지연 시간을 일부러 늘리면
#
# 위의 GPT에서 올투올마다 10 ms, 20 ms씩 늦췄습니다. 한 스텝에 네 번 있으니, 바이트가 많든 적든 스텝은 늦춘 시간의
# 네 배쯤 길어집니다.
# %%
show_latency(ranks["steps_of"][0])
# %% [markdown] lang="en"
# ### Experts that are cut, too
#
# An expert may be too large for one rank, or the experts too few for all ranks. Then a second side helps: two
# ranks hold the *same* experts, half of each, as in [lesson 04](04_tensor_parallel.ipynb). They read the same
# tokens, so they get the same rows. The first matrix is cut by columns, the second by rows; an all-reduce
# adds the two halves of the answer. For one expert (its biases are still 0), with the difference to the whole
# one:
# %% [markdown] lang="ko" en="8147b304"
# ### 전문가도 자르면
#
# 전문가 하나가 랭크 하나에 너무 크거나, 전문가보다 랭크가 많을 수 있습니다. 그러면 메시에 한 방향을 더합니다. 두
# 랭크가 *같은* 전문가를 절반씩 나누어 맡습니다. [레슨 04](04_tensor_parallel.ipynb)와 같은 방법입니다. 두 랭크는 같은
# 토큰을 읽으므로 받는 행도 같습니다. 첫 행렬은 열로, 둘째 행렬은 행으로 자르고, 답의 절반씩을 올리듀스로 더합니다.
# 전문가 하나로 해 보고(바이어스는 아직 0입니다), 자르지 않은 전문가와 얼마나 다른지 봅니다.
# %%
# %%ranks
corner = make_expert_mesh(expert=world_size // 2, tensor=2)
half, whole = corner.get_local_rank("tensor"), same_moe().experts
torch.manual_seed(0)
rows_GC = torch.randn(5, C)

hidden_GF = F.gelu(rows_GC @ whole.up[0].chunk(2, dim=1)[half])
y_GC = hidden_GF @ whole.down[0].chunk(2, dim=0)[half]
dist.all_reduce(y_GC, group=corner.get_group("tensor"))
f"{worst((y_GC - whole.one(rows_GC, 0)).abs().max()):.1e}"
# %% hidden=true source="dlcourse.parallel.expert_tensor:TensorExperts"

# %% [markdown] lang="en"
# The course's class does it for all experts of a rank. Now the layer of above on 2 × 2 ranks, forward and
# backward: 4 experts on a rank, half of each. Which group sends more?
# %% [markdown] lang="ko" en="97163aa2"
# 과정의 클래스는 랭크의 모든 전문가에 이렇게 합니다. 이제 위의 층을 2 × 2 랭크에서 순전파와 역전파까지 돌립니다.
# 랭크마다 전문가 4개의 절반씩입니다. 어느 그룹이 더 많이 보낼까요?
# %% hidden=true
from dlcourse.figures.expert_layouts import show_capacity_over_ranks, show_cut_experts
# %% hidden=true
# %%ranks --fast
cut = ExpertDataParallel(same_moe(), corner)
shares, place = world_size // 2, corner.get_local_rank("expert")
torch.manual_seed(1)
all_NC = torch.randn(shares * N, C)
tokens_NC = all_NC.chunk(shares)[place].clone().requires_grad_()
# %% hidden=true
# %%ranks --as cut_step
said_NC = cut(tokens_NC)
said_NC.square().mean().backward()
# %% hidden=true
# %%ranks --fast
def mine_of(name, whole):
    dim = {"up": 2, "up_bias": 1, "down": 1}.get(name)
    part = whole.chunk(shares)[place]
    return part if dim is None else part.chunk(2, dim)[half]


def share_apart(got, want):
    return worst((got - want).abs().max() / want.abs().max())


cut.sync_gradients()
alone, x_NC_alone = same_moe(), all_NC.clone().requires_grad_()
want_NC = alone(x_NC_alone)
want_NC.square().mean().backward()
# %% hidden=true
# %%ranks --fast
pairs = {"output": (said_NC, want_NC.chunk(shares)[place])}
pairs["tokens"] = tokens_NC.grad / shares, x_NC_alone.grad.chunk(shares)[place]
pairs["router"] = cut.module.router.weight.grad, alone.router.weight.grad
for name, parameter in alone.experts.named_parameters():
    pairs[name] = getattr(cut.module.experts, name).grad, mine_of(name, parameter.grad)
cut_apart = {name: share_apart(*pair) for name, pair in pairs.items()}
# %%
show_cut_experts(cut_step, ranks["cut_apart"][0])
# %% [markdown] lang="en"
# About as much each. The journey carries half of the rows, four times; the all-reduces add up *all* rows,
# twice (the third is for the gradients of the experts' last biases).
#
# Four halves take the memory of two whole experts. With all four ranks along "expert", as above, a rank would
# send 2 × 384 KiB, forward and backward, and no all-reduce: less. So one cuts experts where one is too large
# for a rank, or where there are more ranks than experts.
# %% [markdown] lang="ko" en="87a4fcfe"
# 둘이 비슷합니다. 올투올은 행의 절반을 네 번 나르고, 올리듀스는 *모든* 행을 두 번 더합니다. (세 번째 올리듀스는
# 전문가의 마지막 바이어스의 그래디언트입니다.)
#
# 전문가 절반 네 개는 온전한 전문가 두 개와 메모리가 같습니다. 위에서처럼 랭크 넷을 모두 전문가 방향에 쓰면 순전파와
# 역전파에 2 × 384 KiB를 보내고 올리듀스는 없습니다. 그쪽이 덜 보냅니다. 그래서 전문가 하나가 랭크에 너무 크거나
# 전문가보다 랭크가 많을 때만 전문가를 자릅니다.
# %% hidden=true
# %%ranks --fast
carried = 0


def counted(y, x, received, sent, **options):
    global carried
    carried += (sum(sent) - sent[rank]) * x[0].nbytes
    dist.all_to_all_single(y, x, received, sent, **options)


def slow_and_counted(kind):
    model, layer, _ = trained(kind)
    layer.experts.register_forward_pre_hook(sleep_by_rows)
    layer.exchange = counted
    return model, layer
# %% [markdown] lang="en"
# ### A capacity, over ranks
#
# Lesson 07 drops the copies that find no place with their expert. Over ranks a capacity also bounds what travels,
# and for whom all wait. It counts over the tokens of *all* ranks, so the same copies are dropped as in
# one process.
#
# The model of above, trained as it is and with the balance loss, reads its next batch with several factors.
# Experts sleep 50 microseconds a row again. Our layer sends the copies that are left; systems with buffers of a fixed size send
# the empty places as well: that column is by formula.
# %% [markdown] lang="ko" en="fb937128"
# ### 여러 랭크에서 용량을 두면
#
# 레슨 07에서는 전문가에게 자리가 없는 복사본을 버렸습니다. 랭크가 여럿이면 용량은 오가는 양과 기다리는 시간도
# 제한합니다. 용량은 *모든* 랭크의 토큰을 함께 세므로, 버리는 복사본은 단일 프로세스일 때와 같습니다.
#
# 위의 모델을 그대로, 그리고 균형 손실을 더해 학습한 다음, 용량 계수를 바꾸어 가며 다음 배치를 읽습니다. 전문가는
# 이번에도 행마다 50마이크로초씩 쉽니다. 우리 층은 남은 복사본만 보냅니다. 버퍼 크기를 정해 둔 시스템은 빈자리까지 보내므로, 그 열은
# 공식으로 계산했습니다.
# %% hidden=true
# %%ranks --fast
def with_capacity(model, layer, factor):
    global carried
    layer.capacity_factor, taken = factor, []
    for _ in range(3):
        dist.barrier()
        carried, start = 0, time.perf_counter()
        with torch.no_grad():
            loss = model(*batch_of(30))
        taken.append(time.perf_counter() - start)
    dist.all_reduce(loss)
    asked = layer.asked_E.sum().item()
    found = {"dropped": layer.num_dropped / asked, "sent": carried, "loss": loss.item() / world_size}
    found |= {"tokens": asked // K // world_size, "width": sizes.n_embd}
    return found | {"fullest": layer.rows_p.max().item() * world_size / asked, "seconds": worst(min(taken))}
# %% hidden=true
# %%ranks --fast
capacities = {}
for kind in ("natural", "loss"):
    crowded = slow_and_counted(kind)
    capacities[kind] = {factor: with_capacity(*crowded, factor) for factor in (1, 1.25, 2, None)}
# %%
show_capacity_over_ranks(ranks["capacities"])
# %% [markdown] lang="en"
# Left alone, this router collapsed: factor 1 drops most copies, with the balance loss about a tenth. Without a
# capacity both send about the same bytes, but the wait differs. A capacity bounds it: no rank gets more than
# factor × mean. Where empty places travel, a large factor costs bytes. (After 30 steps losses hardly differ;
# lesson 07 has 300.)
# %% [markdown] lang="ko" en="4707a603"
# 그대로 둔 라우터는 무너져서, 계수가 1이면 복사본을 절반 넘게, 균형 손실을 쓰면 10분의 1쯤 버립니다. 용량이 없으면 보내는
# 양은 비슷하고 기다리는 시간이 다릅니다. 용량은 가장 바쁜 랭크를 평균 × 계수까지로 막습니다. 빈자리까지 보내면 큰
# 계수는 바이트로 값을 치릅니다. (손실은 30스텝이라 거의 같습니다. 300스텝은 레슨 07에.)
# %% [markdown] lang="en"
# ### Who sees the flag sees the data
#
# All of one-sided rests on this sentence, and a processor does not promise it by itself. On x86 stores
# are seen in their order, but for large copies; on Arm nothing is promised without a barrier. Python has
# no barrier instruction, but its locks contain one: that is `fence()`. The argument with its sources
# stands at the top of `dlcourse/collectives/one_sided.py`. With payload no order is needed, but a word of
# 8 bytes must be seen whole. No manual says that of the wide stores that NumPy may use: it has been tried
# on x86, and elsewhere payload is refused.
# %% [markdown] lang="ko" en="52a90cb5"
# ### 플래그가 보이면 데이터도 보인다
#
# 단방향 통신은 모두 이 한 문장 위에 서 있는데, 프로세서가 저절로 보장하지는 않습니다. x86에서는 큰 복사를 빼면
# 저장한 순서대로 보입니다. Arm에서는 배리어(barrier) 없이는 아무것도 보장되지 않습니다. 파이썬에는 배리어
# 명령이 없지만 락(lock) 안에 들어 있습니다. 그것이 `fence()`입니다. 근거와 출처는
# `dlcourse/collectives/one_sided.py` 맨 위에 있습니다. 페이로드 방식에는 순서가 필요 없지만, 8바이트 워드가
# 통째로 보여야 합니다. NumPy가 쓸 수 있는 넓은 저장 명령에는 그런 보장이 어느 매뉴얼에도 없습니다. 그래서 x86에서
# 시험해 보았고, 다른 프로세서에서는 거부합니다.
# %% hidden=true source="dlcourse.collectives.low_latency:LowLatency,put_rows,look_rows,put_words,look_words"

# %% [markdown] lang="en"
# ### A peer dies between put and flag
#
# The last cell of this lesson, because it loses the ranks and all that they hold. The last rank puts its
# tokens and is killed before it raises its flag. A flag that never comes looks like one that is late. So
# whoever waits also looks whether the other process still lives:
# %% [markdown] lang="ko" en="3289af2c"
# ### 넣고 나서 플래그를 올리기 전에 죽으면
#
# 이 레슨의 마지막 셀입니다. 랭크와 그 안의 모든 것을 잃기 때문입니다. 마지막 랭크가 토큰을 넣은 다음 플래그를
# 올리기 전에 죽습니다. 오지 않을 플래그와 늦는 플래그는 똑같아 보입니다. 그래서 기다리는 쪽은 상대 프로세스가 아직
# 살아 있는지도 봅니다.
# %%
# %%ranks --fails "was killed by SIGKILL"
import os, signal
from dlcourse.collectives import one_sided
from dlcourse.collectives.mailboxes import mailboxes_of

if rank == world_size - 1:
    mailboxes_of(None).tell_put = lambda to: os.kill(os.getpid(), signal.SIGKILL)
one_sided.all_to_all(torch.empty(4 * world_size), torch.ones(4 * world_size))
