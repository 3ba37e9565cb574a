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
# Time: reading 25 min + exercises 48 min.
# %% [markdown] lang="ko" en="e594638a"
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
# 시간: 읽기 25분 + 연습 48분.
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
# go where. So before the tokens, their *numbers* travel.
# %% [markdown] lang="ko" en="d2d53e4f"
# 랭크(rank) 네 개에 전문가를 두 개씩 둡니다. 그림은 랭크 0의 토큰이 다녀오는 길입니다. 모든 랭크가 동시에 같은
# 일을 합니다.
#
# ```mermaid
# flowchart LR
#   X[랭크 0의<br>토큰 128개] --> R{라우터<br>top 2} --> P[전문가 순으로<br>정렬한 사본]
#   P -->|올투올| E0[전문가 0, 1<br>랭크 0] & E1[전문가 2, 3<br>랭크 1] & E2[전문가 4, 5<br>랭크 2] & E3[전문가 6, 7<br>랭크 3]
#   E0 & E1 & E2 & E3 -->|올투올| S[가중합]
# ```
#
# 가는 길을 **디스패치**(dispatch), 오는 길을 **컴바인**(combine)이라고 합니다. 토큰이 어디로 몇 개 갈지는 라우터가
# 정한 뒤에야 압니다. 그래서 토큰보다 *개수*를 먼저 보냅니다.
# %% hidden=true
from dlcourse import Ranks, check, claim, compare, explore, hint, lesson, predict, solution
from dlcourse.figures.expert_parallel import num_all_to_all, sent_to_others, show_calls, show_equal
from dlcourse.figures.expert_parallel import show_imbalance, show_slowest, show_traffic
from dlcourse.figures.expert_parallel import tokens_on_the_wire

lesson(lang=lang, name="08_expert_parallel")
ranks = Ranks(num_ranks, device=device)
ranks.cell(f"steps = {steps}", record=False)
# %%
# %%ranks
from dlcourse.models.moe import MoE, combine, permute

N, C, E, K = 128, 256, 8, 2
torch.manual_seed(0)
moe = MoE(C, num_experts=E, top_k=K, hidden=512)
for parameter in moe.parameters():
    nn.init.normal_(parameter, std=0.05)
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
# Rows arrive sorted by *rank*; the experts want them sorted by *expert*: that is `order_G`. Folded
# below is the class of the course, `dlcourse/parallel/expert.py`, which has a backward too.
# %% [markdown] lang="ko" en="57c01f5d"
# 몇 줄이면 됩니다. `permute`와 `combine`은 레슨 07의 것이고, `experts`는 이 랭크에 있는 전문가 둘입니다.
# `all_to_all_single`은 텐서의 행을 모든 랭크에 나누어 보냅니다. 여기서는 랭크마다 보내는 행의 수가 다릅니다.
#
# 행은 *랭크* 순으로 도착하는데 전문가는 *전문가* 순을 원합니다. 그 순서가 `order_G`입니다. 아래에 접어 둔 것은
# 역전파까지 하는 과정의 클래스 `dlcourse/parallel/expert.py`입니다.
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
# 여기서 토큰 하나는 4바이트 수 256개, 곧 1 KiB입니다. 랭크 4개에 토큰이 128개씩 있고 사본은 토큰마다 둘입니다.
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
# A rank's own experts cost nothing to reach, so 3 of 4 copies leave. Rows of the table differ: nobody
# promised an even spread. And the numbers that went ahead were 192 bytes a rank, next to nothing.
#
# ## The same as one process?
#
# Now the real thing: a GPT on text whose feed-forward layer is a `MoE`, its experts divided over four
# ranks by the course's class. Against it one process with all experts and the tokens of all ranks.
# %% [markdown] lang="ko" en="70de494b"
# 자기 랭크의 전문가에게는 공짜로 갑니다. 그래서 사본 넷 가운데 셋이 랭크를 떠납니다. 표의 행은 서로 다릅니다.
# 고르게 나뉜다는 약속은 없었습니다. 먼저 보낸 개수는 랭크마다 192바이트로 거의 없는 것과 같습니다.
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
sgd = torch.optim.SGD(model.parameters(), lr=0.1)
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
loss.backward()
# %% hidden=true
# %%ranks --fast
from dlcourse.parallel.expert import ExpertParallel

alone = ArchitectureGPT(sizes)
sgd_alone = torch.optim.SGD(alone.parameters(), lr=0.1)


def batch_of(step, all_ranks=False):
    options = {"micro_batch": 8 * world_size} if all_ranks else {"micro_batch": 8, "rank": rank}
    return corpus.batch(step, world_size=1 if all_ranks else world_size, block=64, **options)


def worst(number):
    number = torch.as_tensor(number, dtype=torch.float64)
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    return number.item()
# %% hidden=true
# %%ranks --fast
def apart(of):
    off = {"dense": 0.0, "experts": 0.0}
    for ours, whole in zip(model.module.parameters(), alone.parameters()):
        got, want = of(ours), of(whole)
        kind = "dense" if got.shape == want.shape else "experts"
        want = want if kind == "dense" else want.chunk(world_size)[rank]
        off[kind] = max(off[kind], (got - want).abs().max().item())
    return {kind: worst(value) for kind, value in off.items()}
# %% hidden=true
# %%ranks --fast
mean_loss = loss.detach() / world_size
dist.all_reduce(mean_loss)
loss_alone = alone(*batch_of(0, all_ranks=True))
loss_alone.backward()
model.sync_gradients()
off = {"loss": worst((mean_loss - loss_alone).abs())} | apart(lambda p: p.grad)
for step in range(1, steps + 1):
    sgd.step(), sgd_alone.step()
    sgd.zero_grad(), sgd_alone.zero_grad()
    model(*batch_of(step)).backward()
    model.sync_gradients()
    alone(*batch_of(step, all_ranks=True)).backward()
off["steps"] = max(apart(lambda p: p.detach()).values())
# %%
compare("08.calls", num_all_to_all(forward, backward))
show_calls(forward, backward)
# %%
show_equal(ranks["off"][0])
# %% [markdown] lang="en"
# Equal, to rounding. Capacity and balance loss would count over all ranks, too.
#
# The claim of "two all-to-alls a layer" is about the forward alone: gradients make the journey as well,
# in the opposite direction.
#
# ## Everybody waits for the fullest
#
# How even is it? The same model, trained for 20 steps in three ways: as it is; with the balance loss of
# lesson 07; and with *forced* balance, where a counter deals out the tokens and the router has no say.
# %% [markdown] lang="ko" en="623ea848"
# 반올림까지 같습니다. 용량이나 균형 손실을 쓰더라도 모든 랭크의 토큰을 함께 셉니다.
#
# "층마다 올투올 두 번"은 순전파만 센 말입니다. 그래디언트도 같은 길을 거꾸로 다녀옵니다.
#
# ## 가장 바쁜 랭크를 모두가 기다린다
#
# 토큰은 얼마나 고르게 나뉠까요? 같은 모델을 세 방식으로 20스텝씩 학습합니다. 그대로, 레슨 07의 균형 손실을
# 더해서, 그리고 *강제 균형*으로입니다. 강제 균형에서는 라우터 대신 순번이 토큰을 나눕니다.
# %% hidden=true
# %%ranks --fast
from dlcourse.models.moe import balance_loss
from dlcourse.parallel.expert_groups import force_balance


def rows_after(kind):
    model = ExpertDataParallel(ArchitectureGPT(sizes), mesh)
    layer = next(m for m in model.modules() if isinstance(m, ExpertParallel))
    forced = force_balance(model) if kind == "forced" else []
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(20):
        loss = model(*batch_of(step))
        loss = loss + 0.01 * balance_loss(layer.routing, layer.counts_E) * (kind == "loss")
        loss.backward(), model.sync_gradients()
        adam.step(), adam.zero_grad()
    return model, layer.rows_p.tolist(), forced
# %% hidden=true
# %%ranks --fast
kinds = ("natural", "loss", "forced")
models = {kind: rows_after(kind) for kind in kinds}
rows = {kind: models[kind][1] for kind in kinds}
# %%
show_imbalance(ranks["rows"][0])
# %% hidden=true
# %%ranks --fast
import time


def sleep_by_rows(experts, args):
    time.sleep(30e-6 * len(args[0]))


def seconds_of(model):
    for module in model.modules():
        if isinstance(module, Experts):
            module.register_forward_pre_hook(sleep_by_rows)
    taken = []
    for step in range(5):
        dist.barrier()
        start = time.perf_counter()
        with torch.no_grad():
            model(*batch_of(19))
        taken.append(time.perf_counter() - start)
    return worst(min(taken))
# %% hidden=true
# %%ranks --fast
seconds = {kind: seconds_of(models[kind][0]) for kind in kinds}
# %%
show_slowest(ranks["rows"][0], ranks["seconds"][0])
# %% [markdown] lang="en"
# Here four ranks share two cores, so a full rank would only take cores from the others. To see what
# happens on GPUs, each expert *sleeps* 30 microseconds a row in the table. A layer ends when its fullest
# rank does.
#
# Mind this when you read speeds of others: published runs of MoE models mostly force balance. With real
# routing the same models were 8 to 20% slower [2].
#
# ## Where the time goes when messages are small
# %% [markdown] lang="ko" en="f9ae97fc"
# 여기서는 랭크 넷이 코어 둘을 나눠 씁니다. 바쁜 랭크는 다른 랭크의 코어를 빼앗을 뿐입니다. GPU에서 일어날 일을
# 보려고 표에서는 전문가가 행마다 30마이크로초씩 *잡니다*. 층은 가장 바쁜 랭크가 끝나야 끝납니다.
#
# 다른 곳의 속도를 읽을 때 조심하세요. 공개된 MoE 모델의 속도는 대개 강제 균형으로 잰 것입니다. 같은 모델을 실제
# 라우팅으로 돌리면 8-20% 느렸습니다[2].
#
# ## 메시지가 작을 때 시간은 어디로 가나
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
# 하나씩 들어 있는 리스트 둘을 돌려주세요. 그 랭크로 보낼 사본 수와 그 랭크에서 올 사본 수입니다. 개수만
# 주고받아야 합니다.
# %% exercise="08.splits"
# %%ranks
def splits(experts, num_experts):
    raise NotImplementedError


# %%
check("08.splits")
# %% [markdown] lang="en"
# **2. `08.once`** (15 minutes). Two experts of a token may share a rank: then one copy of the token is
# enough. Return the tokens that arrive here, sorted by the rank they come from and then by token, and
# a mask, (tokens, experts of this rank), that says which expert wants which. Target: at most 1.1 times
# the fewest bytes; the mask is small beside a token.
# %% [markdown] lang="ko" en="67a25874"
# **2. `08.once`** (15분). 토큰이 고른 전문가 둘이 같은 랭크에 있을 수 있습니다. 그러면 토큰은 한 번만 보내면
# 됩니다. 여기에 도착하는 토큰을 보낸 랭크 순으로, 그 안에서는 토큰 순으로 돌려주세요. 어느 전문가가 어느 토큰을
# 원하는지를 나타내는 (토큰, 이 랭크의 전문가) 모양의 마스크도 함께 돌려주세요. 목표: 최소 바이트의 1.1배
# 이하입니다. 마스크는 토큰에 비하면 작습니다.
# %% exercise="08.once"
# %%ranks
def dispatch(x, experts, num_experts):
    raise NotImplementedError


# %%
check("08.once")
# %% [markdown] lang="en"
# **3. `08.combine`** (10 minutes). Answers come as messages `(rank, rows)` in any order; a rank that was
# sent nothing sends none. `copies` is what `permute` gave, so row i of all that was sent is copy
# `copies[i]`; `send` says how many rows went to each rank. Return each token's weighted sum, (N, C): the
# same **bits** in whatever order messages arrive.
# %% [markdown] lang="ko" en="288c6275"
# **3. `08.combine`** (10분). 답은 `(rank, rows)` 메시지로 아무 순서로나 옵니다. 아무것도 받지 못한 랭크는
# 답하지 않습니다. `copies`는 `permute`가 준 것이어서, 보낸 행 가운데 i번째가 사본 `copies[i]`입니다. `send`는
# 랭크마다 보낸 행의 수입니다. 토큰마다 가중합을 (N, C)로 돌려주세요. 메시지가 어떤 순서로 와도 **비트까지** 같아야
# 합니다.
# %% exercise="08.combine"
# %%ranks
def combine(arrivals, copies, send, weights):
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
# ## Deeper
#
# More.
# %% [markdown] lang="ko" en="b73074da"
# ## 더 깊이
#
# 더.
